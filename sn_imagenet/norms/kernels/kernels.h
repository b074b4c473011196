// The kernels over an activation (see Backend), for CPUs.
//
// T is the activation's type, S that of the tables: float for float and bfloat16, double for double.
// "rows" kernels take contiguous memory, where each (n, c) is HW consecutive values; "columns"
// kernels take channels_last memory, [N, HW, C].

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

using Index = int64_t;
struct BFloat16 {
  uint16_t bits;
};

template <typename S> inline S load(const S* x) { return *x; }
inline float load(const BFloat16* x) {
  uint32_t bits = uint32_t(x->bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
template <typename S> inline void store(S* y, S value) { *y = value; }
inline void store(BFloat16* y, float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  y->bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// ---- elements ----------------------------------------------------------------------------------

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

// Rows too short to fill the lanes are summed side by side instead, one per lane.
constexpr Index kShortRow = 16;
constexpr int kSideBySide = 16;
inline Index short_blocks(Index tables, Index area) {
  return area < kShortRow ? tables / kSideBySide : 0;
}

// Rows of channels_last memory that are summed before they are added to the total: few enough to
// stay in cache for a second read, enough that merging costs little.
inline Index chunk_rows(Index channels) { return std::max<Index>(16, 8192 / channels); }

// With fewer samples than threads, channels_last work is also split into blocks of channels.
inline Index column_block(Index samples, Index channels, int threads) {
  if (samples == 0 || samples >= threads) return channels;
  Index blocks = (threads + samples - 1) / samples;
  Index block = (channels + blocks - 1) / blocks;
  return std::max<Index>(64, (block + 15) / 16 * 16);
}

// Calls body(first, integral_constant rows) for four rows at a time, then for single rows.
template <typename Body> inline void by_four(Index count, Body body) {
  Index i = 0;
  for (; i + 4 <= count; i += 4) body(i, std::integral_constant<int, 4>());
  for (; i < count; ++i) body(i, std::integral_constant<int, 1>());
}

// ---- moments -----------------------------------------------------------------------------------

template <typename T, typename S>
void moments_rows(const T* x, S* mean, S* var, Index tables, Index area, int threads) {
  const Index blocks = short_blocks(tables, area);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index block = 0; block < blocks; ++block) {
    const T* rows = x + block * kSideBySide * area;
    S mu[kSideBySide] = {}, square[kSideBySide] = {};
    for (Index i = 0; i < area; ++i)
#pragma omp simd
      for (int r = 0; r < kSideBySide; ++r) mu[r] += load(rows + r * area + i);
    for (int r = 0; r < kSideBySide; ++r) mu[r] /= S(area);
    for (Index i = 0; i < area; ++i)
#pragma omp simd
      for (int r = 0; r < kSideBySide; ++r) {
        const S centered = load(rows + r * area + i) - mu[r];
        square[r] += centered * centered;
      }
    for (int r = 0; r < kSideBySide; ++r) {
      mean[block * kSideBySide + r] = mu[r];
      var[block * kSideBySide + r] = square[r] / S(area);
    }
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = blocks * kSideBySide; t < tables; ++t) {
    const T* row = x + t * area;
    S mu = sum<S>(area, [=](Index i) { return load(row + i); }) / S(area);
    mean[t] = mu;
    auto square = [=](Index i) { return (load(row + i) - mu) * (load(row + i) - mu); };
    var[t] = sum<S>(area, square) / S(area);
  }
}

// One chunk of rows at a time, each centered on its own mean, merged by Chan et al.'s update. All
// are relative to the first row: sums of means that are large beside the deviations lose digits.
template <typename T, typename S>
void moments_columns(const T* x, S* mean, S* var, Index samples, Index channels, Index area,
                     int threads) {
  const Index block = column_block(samples, channels, threads);
  const Index blocks = (channels + block - 1) / block;
  const Index rows = chunk_rows(channels);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index item = 0; item < samples * blocks; ++item) {
    const Index first = item % blocks * block;
    const Index width = std::min(block, channels - first);
    const Index n = item / blocks;
    const Index table = n * channels + first;
    const T* __restrict origin = x + n * area * channels + first;
    S *__restrict total_mean = mean + table, *__restrict total_square = var + table;
    std::fill_n(total_mean, width, S(0));
    std::fill_n(total_square, width, S(0));
    std::vector<S> buffer(2 * width);
    S *__restrict mu = buffer.data(), *__restrict square = mu + width;
    for (Index start = 0; start < area; start += rows) {
      const Index count = std::min(rows, area - start);
      const T* chunk = x + (n * area + start) * channels + first;
      std::fill_n(mu, 2 * width, S(0));
      by_four(count, [=](Index i, auto run) {
        const T* __restrict row = chunk + i * channels;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S total = 0;
          for (int r = 0; r < run(); ++r) total += load(row + r * channels + c) - load(origin + c);
          mu[c] += total;
        }
      });
      const S inverse = S(1) / S(count);
#pragma omp simd
      for (Index c = 0; c < width; ++c) mu[c] *= inverse;
      by_four(count, [=](Index i, auto run) {
        const T* __restrict row = chunk + i * channels;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S total = 0;
          for (int r = 0; r < run(); ++r) {
            S centered = (load(row + r * channels + c) - load(origin + c)) - mu[c];
            total += centered * centered;
          }
          square[c] += total;
        }
      });
      const S share = S(count) / S(start + count);
      const S spread = S(start) * share;
#pragma omp simd
      for (Index c = 0; c < width; ++c) {
        S delta = mu[c] - total_mean[c];
        total_mean[c] += delta * share;
        total_square[c] += square[c] + delta * delta * spread;
      }
    }
    for (Index c = 0; c < width; ++c) {
      total_mean[c] += load(origin + c);
      total_square[c] /= S(area);
    }
  }
}

// ---- y = (x - center) * scale + shift, plus the residual, then the ReLU ------------------------

template <bool Relu, bool Residual, typename T, typename S>
void affine_rows(const T* x, const S* center, const S* scale, const S* shift, const T* residual,
                 T* y, Index tables, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const S a = center[t], b = scale[t], c = shift[t];
    const T* __restrict from = x + t * area;
    const T* __restrict more = Residual ? residual + t * area : nullptr;
    T* __restrict to = y + t * area;
#pragma omp simd
    for (Index i = 0; i < area; ++i) {
      S z = affine_value(load(from + i), a, b, c);
      if constexpr (Residual) z += load(more + i);
      store(to + i, Relu ? relu(z) : z);
    }
  }
}

template <bool Relu, bool Residual, typename T, typename S>
void affine_columns(const T* x, const S* center, const S* scale, const S* shift, const T* residual,
                    T* y, Index samples, Index channels, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index pixel = 0; pixel < samples * area; ++pixel) {
    const Index table = pixel / area * channels;
    const S *__restrict a = center + table, *__restrict b = scale + table;
    const S* __restrict s = shift + table;
    const T* __restrict from = x + pixel * channels;
    const T* __restrict more = Residual ? residual + pixel * channels : nullptr;
    T* __restrict to = y + pixel * channels;
#pragma omp simd
    for (Index c = 0; c < channels; ++c) {
      S z = affine_value(load(from + c), a[c], b[c], s[c]);
      if constexpr (Residual) z += load(more + c);
      store(to + c, Relu ? relu(z) : z);
    }
  }
}

// ---- sums of g and of g * (x - mean) for backward; g is the gradient after the ReLU mask -------

template <ReluMask M, typename T, typename S>
void gradient_sums_rows(const T* grad, const T* x, const S* mean, S* sums, S* products,
                        const S* center, const S* scale, const S* shift, const T* y, T* masked,
                        Index tables, Index area, int threads) {
  const bool recompute = M == kRecomputed;
  const Index blocks = short_blocks(tables, area);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index block = 0; block < blocks; ++block) {
    const Index first = block * kSideBySide;
    const S* mu = mean + first;
    const S *a = recompute ? center + first : mu, *b = recompute ? scale + first : mu;
    const S* s = recompute ? shift + first : mu;
    S total[kSideBySide] = {}, product[kSideBySide] = {};
    for (Index i = 0; i < area; ++i)
#pragma omp simd
      for (int r = 0; r < kSideBySide; ++r) {
        const Index k = (first + r) * area + i;
        const S value = load(x + k);
        const S g = masked_gradient<M>(grad + k, value, a[r], b[r], s[r], y + k, masked + k);
        total[r] += g;
        product[r] += g * (value - mu[r]);
      }
    std::copy_n(total, kSideBySide, sums + first);
    std::copy_n(product, kSideBySide, products + first);
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = blocks * kSideBySide; t < tables; ++t) {
    const Index at = t * area;
    const T* __restrict row = x + at;
    const T* __restrict from = grad + at;
    const T* __restrict out = M == kOutput ? y + at : nullptr;
    T* __restrict to = M == kOutput ? masked + at : nullptr;
    const S mu = mean[t];
    const S a = recompute ? center[t] : S(0), b = recompute ? scale[t] : S(0);
    const S c = recompute ? shift[t] : S(0);
    two_sums(area, sums[t], products[t], [=](Index i, S& total, S& product) {
      const S value = load(row + i);
      const S g = masked_gradient<M>(from + i, value, a, b, c, out + i, to + i);
      total += g;
      product += g * (value - mu);
    });
  }
}

template <ReluMask M, typename T, typename S>
void gradient_sums_columns(const T* grad, const T* x, const S* mean, S* sums, S* products,
                           const S* center, const S* scale, const S* shift, const T* y, T* masked,
                           Index samples, Index channels, Index area, int threads) {
  const Index block = column_block(samples, channels, threads);
  const Index blocks = (channels + block - 1) / block;
  const Index rows = chunk_rows(channels);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index item = 0; item < samples * blocks; ++item) {
    const Index first = item % blocks * block;
    const Index width = std::min(block, channels - first);
    const Index n = item / blocks;
    const Index table = n * channels + first;
    const bool recompute = M == kRecomputed;
    const S* __restrict mu = mean + table;
    const S* __restrict a = recompute ? center + table : mu;
    const S* __restrict b = recompute ? scale + table : mu;
    const S* __restrict s = recompute ? shift + table : mu;
    S *__restrict total = sums + table, *__restrict total_product = products + table;
    std::fill_n(total, width, S(0));
    std::fill_n(total_product, width, S(0));
    std::vector<S> buffer(2 * width);
    S *__restrict part = buffer.data(), *__restrict product = part + width;
    for (Index start = 0; start < area; start += rows) {
      const Index count = std::min(rows, area - start);
      const Index offset = (n * area + start) * channels + first;
      std::fill_n(part, 2 * width, S(0));
      by_four(count, [=](Index i, auto run) {
        const Index at = offset + i * channels;
        const T* __restrict row = x + at;
        const T* __restrict from = grad + at;
        const T* __restrict out = M == kOutput ? y + at : nullptr;
        T* __restrict to = M == kOutput ? masked + at : nullptr;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S g_sum = 0, product_sum = 0;
          for (int r = 0; r < run(); ++r) {
            const Index k = r * channels + c;
            const S value = load(row + k);
            const S g = masked_gradient<M>(from + k, value, a[c], b[c], s[c], out + k, to + k);
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
  }
}

// ---- dx = a * g + b * (x - mean) + c; g as above, with a as the scale of the ReLU's map --------

template <ReluMask M, typename T, typename S>
void input_gradient_rows(const T* grad, const T* x, const S* mean, const S* a, const S* b,
                         const S* c, const S* center, const S* shift, T* dx, Index tables,
                         Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const S mu = mean[t], at = a[t], bt = b[t], ct = c[t];
    const S mid = M == kRecomputed ? center[t] : S(0), offset = M == kRecomputed ? shift[t] : S(0);
    const T* __restrict from = grad + t * area;
    const T* __restrict row = x + t * area;
    T* __restrict to = dx + t * area;
#pragma omp simd
    for (Index i = 0; i < area; ++i) {
      const S value = load(row + i);
      const S g = masked_gradient<M, T, S>(from + i, value, mid, at, offset, nullptr, nullptr);
      store(to + i, at * g + (bt * (value - mu) + ct));
    }
  }
}

template <ReluMask M, typename T, typename S>
void input_gradient_columns(const T* grad, const T* x, const S* mean, const S* a, const S* b,
                            const S* c, const S* center, const S* shift, T* dx, Index samples,
                            Index channels, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index pixel = 0; pixel < samples * area; ++pixel) {
    const Index table = pixel / area * channels;
    const S *__restrict mu = mean + table, *__restrict at = a + table;
    const S *__restrict bt = b + table, *__restrict ct = c + table;
    const S* __restrict mid = M == kRecomputed ? center + table : mu;
    const S* __restrict offset = M == kRecomputed ? shift + table : mu;
    const T* __restrict from = grad + pixel * channels;
    const T* __restrict row = x + pixel * channels;
    T* __restrict to = dx + pixel * channels;
#pragma omp simd
    for (Index i = 0; i < channels; ++i) {
      const S value = load(row + i);
      const S g = masked_gradient<M, T, S>(from + i, value, mid[i], at[i], offset[i], nullptr,
                                           nullptr);
      store(to + i, at[i] * g + (bt[i] * (value - mu[i]) + ct[i]));
    }
  }
}

// ---- each kernel, for either layout ------------------------------------------------------------
// A null residual adds nothing. In backward, the ReLU's sign is read from y if y is given, else
// recomputed if center is given; without either there is no ReLU.

struct Sizes {
  Index samples, channels, area;
  bool columns;
  int threads;
};

#define CALL(kernel, flags, ...)                                                             \
  (s.columns ? kernel##_columns<flags>(__VA_ARGS__, s.samples, s.channels, s.area, s.threads) \
             : kernel##_rows<flags>(__VA_ARGS__, s.samples* s.channels, s.area, s.threads))
#define BOTH(first, second) first, second
#define AFFINE(relu, add) CALL(affine, BOTH(relu, add), x, center, scale, shift, residual, y)
#define SUMS(mask) \
  CALL(gradient_sums, mask, grad, x, mean, sums, products, center, scale, shift, y, masked)
#define INPUT(mask) CALL(input_gradient, mask, grad, x, mean, a, b, c, center, shift, dx)

template <typename T, typename S>
void compute_moments(const T* x, S* mean, S* var, const Sizes& s) {
  s.columns ? moments_columns(x, mean, var, s.samples, s.channels, s.area, s.threads)
            : moments_rows(x, mean, var, s.samples * s.channels, s.area, s.threads);
}

template <typename T, typename S>
void compute_affine(const T* x, const S* center, const S* scale, const S* shift,
                    const T* residual, T* y, bool relu, const Sizes& s) {
  if (relu) residual ? AFFINE(true, true) : AFFINE(true, false);
  else residual ? AFFINE(false, true) : AFFINE(false, false);
}

template <typename T, typename S>
void compute_gradient_sums(const T* grad, const T* x, const S* mean, S* sums, S* products,
                           const S* center, const S* scale, const S* shift, const T* y, T* masked,
                           const Sizes& s) {
  y ? SUMS(kOutput) : center ? SUMS(kRecomputed) : SUMS(kNoMask);
}

template <typename T, typename S>
void compute_input_gradient(const T* grad, const T* x, const S* mean, const S* a, const S* b,
                            const S* c, const S* center, const S* shift, T* dx, const Sizes& s) {
  center ? INPUT(kRecomputed) : INPUT(kNoMask);
}

#undef INPUT
#undef SUMS
#undef AFFINE
#undef BOTH
#undef CALL

}  // namespace
