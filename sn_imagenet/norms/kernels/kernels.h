// The kernels over an activation (see Backend), for CPUs.
//
// T is the type of the activation, S that of the tables: double for double, otherwise float.
// Contiguous memory has rows, HW consecutive values of each (n, c); channels_last memory has
// columns, [N, HW, C].

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <c10/util/BFloat16.h>

namespace {

using Index = int64_t;

struct Sizes {
  Index samples, channels, area;
  bool columns;
  int threads;

  Index tables() const { return samples * channels; }  // entries of a table
};

// ---- elements ----------------------------------------------------------------------------------

template <typename S> inline S load(const S* x) { return *x; }
inline float load(const c10::BFloat16* x) { return *x; }
template <typename T, typename S> inline void store(T* y, S value) { *y = value; }

template <typename S> inline S affine_value(S x, S center, S scale, S shift) {
  return (x - center) * scale + shift;
}

// Like PyTorch's: NaN propagates, and so does the gradient at NaN; at 0 the gradient is 0.
template <typename S> inline S relu(S z) { return z <= 0 ? S(0) : z; }

// The ReLU between the incoming gradient and the affine map: none; a ReLU whose sign is recomputed
// from x; or a ReLU whose sign is read from its output y, where the masked gradient is also stored.
enum ReluMask { kNoMask, kRecomputed, kOutput };

template <ReluMask M, typename T, typename S>
inline S masked_gradient(const T* grad, S x, S center, S scale, S shift, const T* y, T* masked) {
  S g = load(grad);
  if constexpr (M == kRecomputed) g = affine_value(x, center, scale, shift) <= 0 ? S(0) : g;
  if constexpr (M == kOutput) {
    g = load(y) <= 0 ? S(0) : g;
    store(masked, g);
  }
  return g;
}

// ---- sums over one row -------------------------------------------------------------------------
// Several independent accumulators hide the latency of addition and halve the growth of the
// rounding error. The compiler may not reorder a plain loop. Long rows use more accumulators than
// short rows, for which the final reduction would cost too much.

constexpr Index kLongRow = 256;

// Two sums in one read: term(i, first, second) adds to both.
template <int Lanes, typename S, typename Term>
inline void sums_by_lanes(Index size, S& first, S& second, Term term) {
  S firsts[Lanes] = {}, seconds[Lanes] = {};
  Index i = 0;
  for (; i + Lanes <= size; i += Lanes) {
#pragma omp simd
    for (int l = 0; l < Lanes; ++l) term(i + l, firsts[l], seconds[l]);
  }
  for (int width = Lanes / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) {
      firsts[l] += firsts[l + width];
      seconds[l] += seconds[l + width];
    }
  for (; i < size; ++i) term(i, firsts[0], seconds[0]);
  first = firsts[0];
  second = seconds[0];
}

template <typename S, typename Term>
inline void two_sums(Index size, S& first, S& second, Term term) {
  size < kLongRow ? sums_by_lanes<16>(size, first, second, term)
                  : sums_by_lanes<32>(size, first, second, term);
}

template <typename S, typename Term> inline S sum(Index size, Term term) {
  S total, unused;
  auto one = [=](Index i, S& first, S&) { first += term(i); };
  size < kLongRow ? sums_by_lanes<16>(size, total, unused, one)
                  : sums_by_lanes<64>(size, total, unused, one);
  return total;
}

// ---- loops over an activation ------------------------------------------------------------------

// Calls body(at, table, length) for each run of consecutive values: a row, which has one entry of a
// table, or a pixel, which has `length` entries.
template <bool Columns, typename Body> inline void over_runs(const Sizes& s, Body body) {
  const Index runs = s.samples * (Columns ? s.area : s.channels);
  const Index length = Columns ? s.channels : s.area;
#pragma omp parallel for schedule(static) num_threads(s.threads) if (s.threads > 1)
  for (Index run = 0; run < runs; ++run)
    body(run * length, Columns ? run / s.area * s.channels : run, length);
}

// Rows shorter than this do not fill the lanes, and are summed side by side, as columns.
constexpr Index kShortRow = 16;

// Calls body(at, table, width) for each sample. With fewer samples than threads, each is also split
// into blocks of `width` channels.
template <bool Columns, typename Body> inline void over_samples(const Sizes& s, Body body) {
  Index block = s.channels;
  if (0 < s.samples && s.samples < s.threads) {
    const Index blocks = (s.threads + s.samples - 1) / s.samples;
    block = std::max<Index>(64, ((s.channels + blocks - 1) / blocks + 15) / 16 * 16);
  }
  const Index blocks = (s.channels + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(s.threads) if (s.threads > 1)
  for (Index item = 0; item < s.samples * blocks; ++item) {
    const Index n = item / blocks, first = item % blocks * block;
    const Index at = (n * s.channels + first) * s.area;
    body(Columns ? n * s.channels * s.area + first : at, n * s.channels + first,
         std::min(block, s.channels - first));
  }
}

// Pixels of channels_last memory that are summed before they are added to the total: enough that
// merging costs little.
constexpr Index kFirstChunk = 16;
inline Index chunk_size(Index channels) { return std::max<Index>(16, 8192 / channels); }

// Calls body(first, integral_constant pixels) for four pixels at a time, then for single ones.
template <typename Body> inline void by_four(Index count, Body body) {
  Index i = 0;
  for (; i + 4 <= count; i += 4) body(i, std::integral_constant<int, 4>());
  for (; i < count; ++i) body(i, std::integral_constant<int, 1>());
}

// ---- moments -----------------------------------------------------------------------------------
// Relative to the first value: sums of means that are large beside the deviations lose digits.

template <typename T, typename S>
void moments_of_rows(const T* x, S* mean, S* var, const Sizes& s) {
  over_runs<false>(s, [=](Index at, Index table, Index area) {
    const T* row = x + at;
    const S origin = load(row);
    const S mu = sum<S>(area, [=](Index i) { return load(row + i) - origin; }) / S(area);
    const auto square = [=](Index i) {
      const S centered = (load(row + i) - origin) - mu;
      return centered * centered;
    };
    mean[table] = origin + mu;
    var[table] = sum<S>(area, square) / S(area);
  });
}

// One read. Each chunk of pixels is centered on the mean of those before it, and its sums are then
// moved to the mean of both. The squares lose the digits of d^2 over the variance, where d is the
// change of the center. The first chunk is centered on its first value, so that d^2 is at most its
// variance times its number of pixels, which is small. A later chunk is at most as long as all
// before it, so that the variance of both has a quarter of d^2 in it.
template <bool Columns, typename T, typename S>
void moments_of_columns(const T* x, S* mean, S* var, const Sizes& s) {
  const Index area = s.area, size = chunk_size(s.channels);
  const Index next = Columns ? s.channels : 1, step = Columns ? 1 : area;  // pixel, channel
  over_samples<Columns>(s, [=](Index at, Index table, Index width) {
    const T* __restrict origin = x + at;
    S *__restrict total_mean = mean + table, *__restrict total_square = var + table;
    std::fill_n(total_mean, width, S(0));
    std::fill_n(total_square, width, S(0));
    std::vector<S> buffer(2 * width);
    S *__restrict total = buffer.data(), *__restrict square = total + width;
    for (Index start = 0, count; start < area; start += count) {
      count = std::min({size, std::max(start, kFirstChunk), area - start});
      const T* chunk = x + at + start * next;
      std::fill_n(total, 2 * width, S(0));
      by_four(count, [=](Index i, auto run) {
        const T* __restrict pixel = chunk + i * next;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S sum = 0, sum_square = 0;
          for (int r = 0; r < run(); ++r) {
            const S value = load(pixel + r * next + c * step) - load(origin + c * step);
            const S centered = value - total_mean[c];
            sum += centered;
            sum_square += centered * centered;
          }
          total[c] += sum;
          square[c] += sum_square;
        }
      });
      const S share = S(1) / S(start + count);
#pragma omp simd
      for (Index c = 0; c < width; ++c) {
        total_mean[c] += total[c] * share;
        total_square[c] += square[c] - total[c] * total[c] * share;
      }
    }
    for (Index c = 0; c < width; ++c) {
      total_mean[c] += load(origin + c * step);
      total_square[c] = std::max(total_square[c] / S(area), S(0));
    }
  });
}

// ---- y = (x - center) * scale + shift, plus the residual, then the ReLU ------------------------

template <bool Columns, bool Relu, bool Residual, typename T, typename S>
void affine_of_runs(const T* x, const S* tables, const T* residual, T* y, const Sizes& s) {
  const Index size = s.tables();
  over_runs<Columns>(s, [=](Index at, Index table, Index length) {
    const S *__restrict a = tables + table, *__restrict b = a + size, *__restrict d = b + size;
    const T *__restrict from = x + at, *__restrict more = Residual ? residual + at : nullptr;
    T* __restrict to = y + at;
#pragma omp simd
    for (Index i = 0; i < length; ++i) {
      const Index k = Columns ? i : 0;
      S z = affine_value(load(from + i), a[k], b[k], d[k]);
      if constexpr (Residual) z += load(more + i);
      store(to + i, Relu ? relu(z) : z);
    }
  });
}

// ---- sums of g and of g * (x - mean) for backward; g is the gradient after the ReLU mask -------

template <ReluMask M, typename T, typename S>
void gradient_sums_of_rows(const T* grad, const T* x, const S* mean, S* sums, const S* tables,
                           const T* y, T* masked, const Sizes& s) {
  S* products = sums + s.tables();
  over_runs<false>(s, [=](Index at, Index table, Index area) {
    const T *__restrict row = x + at, *__restrict from = grad + at;
    const T* __restrict out = M == kOutput ? y + at : nullptr;
    T* __restrict to = M == kOutput ? masked + at : nullptr;
    const S mu = mean[table];
    const S *entry = tables + table;
    const S a = entry[0], b = entry[s.tables()], c = entry[2 * s.tables()];
    two_sums(area, sums[table], products[table], [=](Index i, S& total, S& product) {
      const S value = load(row + i);
      const S g = masked_gradient<M>(from + i, value, a, b, c, out + i, to + i);
      total += g;
      product += g * (value - mu);
    });
  });
}

template <bool Columns, ReluMask M, typename T, typename S>
void gradient_sums_of_columns(const T* grad, const T* x, const S* mean, S* sums, const S* tables,
                              const T* y, T* masked, const Sizes& s) {
  const Index area = s.area, size = chunk_size(s.channels);
  const Index next = Columns ? s.channels : 1, step = Columns ? 1 : area;  // pixel, channel
  S* products = sums + s.tables();
  over_samples<Columns>(s, [=](Index at, Index table, Index width) {
    const S *__restrict mu = mean + table, *__restrict a = tables + table;
    const S *__restrict b = a + s.tables(), *__restrict d = b + s.tables();
    S *__restrict total = sums + table, *__restrict total_product = products + table;
    std::fill_n(total, width, S(0));
    std::fill_n(total_product, width, S(0));
    std::vector<S> buffer(2 * width);
    S *__restrict part = buffer.data(), *__restrict product = part + width;
    for (Index start = 0; start < area; start += size) {
      const Index offset = at + start * next;
      std::fill_n(part, 2 * width, S(0));
      by_four(std::min(size, area - start), [=](Index i, auto run) {
        const Index first = offset + i * next;
        const T *__restrict pixel = x + first, *__restrict from = grad + first;
        const T* __restrict out = M == kOutput ? y + first : nullptr;
        T* __restrict to = M == kOutput ? masked + first : nullptr;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S g_sum = 0, product_sum = 0;
          for (int r = 0; r < run(); ++r) {
            const Index k = r * next + c * step;
            const S value = load(pixel + k);
            const S g = masked_gradient<M>(from + k, value, a[c], b[c], d[c], out + k, to + k);
            g_sum += g;
            product_sum += g * (value - mu[c]);
          }
          part[c] += g_sum;
          product[c] += product_sum;
        }
      });
#pragma omp simd
      for (Index c = 0; c < width; ++c) {
        total[c] += part[c];
        total_product[c] += product[c];
      }
    }
  });
}

// ---- dx = scale * g + b * (x - mean) + c; g as above -------------------------------------------

template <bool Columns, ReluMask M, typename T, typename S>
void input_gradient_of_runs(const T* grad, const T* x, const S* mean, const S* tables,
                            const S* line, T* dx, const Sizes& s) {
  const Index size = s.tables();
  over_runs<Columns>(s, [=](Index run, Index table, Index length) {
    const S *__restrict mu = mean + table, *__restrict center = tables + table;
    const S *__restrict scale = center + size, *__restrict shift = scale + size;
    const S *__restrict b = line + table, *__restrict c = b + size;
    const T *__restrict from = grad + run, *__restrict values = x + run;
    T* __restrict to = dx + run;
#pragma omp simd
    for (Index i = 0; i < length; ++i) {
      const Index k = Columns ? i : 0;
      const S value = load(values + i);
      const S g = masked_gradient<M, T, S>(from + i, value, center[k], scale[k], shift[k], nullptr,
                                           nullptr);
      store(to + i, scale[k] * g + (b[k] * (value - mu[k]) + c[k]));
    }
  });
}

// ---- each kernel, for either layout ------------------------------------------------------------
// `tables` are center, scale and shift, [3, N, C]; `sums` and `line` (b and c) are [2, N, C]. A null
// residual adds nothing. In backward, the sign of the ReLU is read from y if y is given, else
// recomputed if `relu`.

// Calls body with `flag` as a constant.
template <typename Body> inline void with_flag(bool flag, Body body) {
  flag ? body(std::true_type()) : body(std::false_type());
}

template <typename T, typename S>
void compute_moments(const T* x, S* mean, S* var, const Sizes& s) {
  s.columns            ? moments_of_columns<true>(x, mean, var, s)
  : s.area < kShortRow ? moments_of_columns<false>(x, mean, var, s)
                       : moments_of_rows(x, mean, var, s);
}

template <typename T, typename S>
void compute_affine(const T* x, const S* tables, const T* residual, T* y, bool relu,
                    const Sizes& s) {
  with_flag(s.columns, [&](auto columns) {
    with_flag(relu, [&](auto clip) {
      with_flag(residual, [&](auto add) {
        affine_of_runs<columns(), clip(), add()>(x, tables, residual, y, s);
      });
    });
  });
}

template <typename T, typename S>
void compute_gradient_sums(const T* grad, const T* x, const S* mean, S* sums, const S* tables,
                           bool relu, const T* y, T* masked, const Sizes& s) {
  with_flag(y, [&](auto output) {
    with_flag(relu && !y, [&](auto recomputed) {
      constexpr ReluMask mask = output() ? kOutput : recomputed() ? kRecomputed : kNoMask;
      const auto kernel = s.columns            ? gradient_sums_of_columns<true, mask, T, S>
                          : s.area < kShortRow ? gradient_sums_of_columns<false, mask, T, S>
                                               : gradient_sums_of_rows<mask, T, S>;
      kernel(grad, x, mean, sums, tables, y, masked, s);
    });
  });
}

template <typename T, typename S>
void compute_input_gradient(const T* grad, const T* x, const S* mean, const S* tables,
                            const S* line, bool relu, T* dx, const Sizes& s) {
  with_flag(s.columns, [&](auto columns) {
    with_flag(relu, [&](auto recomputed) {
      constexpr ReluMask mask = recomputed() ? kRecomputed : kNoMask;
      input_gradient_of_runs<columns(), mask>(grad, x, mean, tables, line, dx, s);
    });
  });
}

}  // namespace
