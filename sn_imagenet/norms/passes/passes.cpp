// The passes over an activation (see Backend), for CPUs.
//
// Compiled on first use by compiler.py and called through ctypes: plain pointers and sizes, no
// PyTorch headers, so that it builds in seconds. T is the activation's type, S the tables':
// float for float and bfloat16, double for double. "rows" kernels take contiguous memory, where
// each (n, c) is one run of HW values; "columns" kernels take channels_last memory, [N, HW, C].

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

template <typename S> inline S affine(S x, S center, S scale, S shift) {
  return (x - center) * scale + shift;
}

// As PyTorch's: NaN comes through, and so does the gradient at it; at 0 the gradient is 0.
template <typename S> inline S relu(S z) { return z <= 0 ? S(0) : z; }

// What the gradient comes through on its way to the affine map: nothing; a ReLU whose sign is
// recomputed from x; one whose sign is its output's, and then what came through is written too.
enum Gate { kOpen, kRecomputed, kOutput };

template <Gate G, typename T, typename S>
inline S through(const T* grad, S x, S center, S scale, S shift, const T* y, T* gated) {
  S g = load(grad);
  if constexpr (G == kRecomputed) g = affine(x, center, scale, shift) <= 0 ? S(0) : g;
  if constexpr (G == kOutput) {
    g = load(y) <= 0 ? S(0) : g;
    store(gated, g);
  }
  return g;
}

// ---- sums over one row -------------------------------------------------------------------------
// Several independent accumulators hide the latency of addition and halve the rounding error's
// growth; a plain loop may not be reordered by the compiler. Long rows take more of them than short
// ones, which do not repay the folding.

constexpr Index kLongRow = 256;

// Two sums in one look: term(i, first, second) adds to both.
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

// Rows of channels_last memory that are summed before they join the total: short enough to stay in
// cache for a second look, long enough that joining costs little.
inline Index chunk_rows(Index channels) { return std::max<Index>(16, 8192 / channels); }

// With fewer samples than threads, channels_last work is also split into blocks of channels.
inline Index column_block(Index samples, Index channels, int threads) {
  if (samples == 0 || samples >= threads) return channels;
  Index blocks = (threads + samples - 1) / samples;
  Index block = (channels + blocks - 1) / blocks;
  return std::max<Index>(64, (block + 15) / 16 * 16);
}

// Calls body(first, integral_constant rows) for runs of four rows, then of one.
template <typename Body> inline void by_four(Index count, Body body) {
  Index i = 0;
  for (; i + 4 <= count; i += 4) body(i, std::integral_constant<int, 4>());
  for (; i < count; ++i) body(i, std::integral_constant<int, 1>());
}

// ---- moments -----------------------------------------------------------------------------------

template <typename T, typename S>
void moments_rows(const T* x, S* mean, S* var, Index tables, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const T* row = x + t * area;
    S mu = sum<S>(area, [=](Index i) { return load(row + i); }) / S(area);
    mean[t] = mu;
    auto square = [=](Index i) { return (load(row + i) - mu) * (load(row + i) - mu); };
    var[t] = sum<S>(area, square) / S(area);
  }
}

// One chunk of rows at a time, each centred on its own mean, joined by Chan et al.'s update.
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
          for (int r = 0; r < run(); ++r) total += load(row + r * channels + c);
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
            S centered = load(row + r * channels + c) - mu[c];
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
    for (Index c = 0; c < width; ++c) total_square[c] /= S(area);
  }
}

// ---- y = (x - center) * scale + shift, + residual, its ReLU ------------------------------------

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
      S z = affine(load(from + i), a, b, c);
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
      S z = affine(load(from + c), a[c], b[c], s[c]);
      if constexpr (Residual) z += load(more + c);
      store(to + c, Relu ? relu(z) : z);
    }
  }
}

// ---- backward's sums: of g and of g * (x - mean), where g came through the gate ----------------

template <Gate G, typename T, typename S>
void gradient_sums_rows(const T* grad, const T* x, const S* mean, S* sums, S* products,
                        const S* center, const S* scale, const S* shift, const T* y, T* gated,
                        Index tables, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const Index at = t * area;
    const T* __restrict row = x + at;
    const T* __restrict from = grad + at;
    const T* __restrict out = G == kOutput ? y + at : nullptr;
    T* __restrict to = G == kOutput ? gated + at : nullptr;
    const S mu = mean[t];
    const bool again = G == kRecomputed;
    const S a = again ? center[t] : S(0), b = again ? scale[t] : S(0), c = again ? shift[t] : S(0);
    two_sums(area, sums[t], products[t], [=](Index i, S& total, S& product) {
      const S value = load(row + i);
      const S g = through<G>(from + i, value, a, b, c, out + i, to + i);
      total += g;
      product += g * (value - mu);
    });
  }
}

template <Gate G, typename T, typename S>
void gradient_sums_columns(const T* grad, const T* x, const S* mean, S* sums, S* products,
                           const S* center, const S* scale, const S* shift, const T* y, T* gated,
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
    const bool again = G == kRecomputed;
    const S* __restrict mu = mean + table;
    const S *__restrict a = again ? center + table : mu, *__restrict b = again ? scale + table : mu;
    const S* __restrict s = again ? shift + table : mu;
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
        const T* __restrict out = G == kOutput ? y + at : nullptr;
        T* __restrict to = G == kOutput ? gated + at : nullptr;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S of_g = 0, of_product = 0;
          for (int r = 0; r < run(); ++r) {
            const Index k = r * channels + c;
            const S value = load(row + k);
            const S g = through<G>(from + k, value, a[c], b[c], s[c], out + k, to + k);
            of_g += g;
            of_product += g * (value - mu[c]);
          }
          part[c] += of_g;
          product[c] += of_product;
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

// ---- dx = a * g + b * (x - mean) + c, where g came through the gate, whose scale is a ----------

template <Gate G, typename T, typename S>
void input_gradient_rows(const T* grad, const T* x, const S* mean, const S* a, const S* b,
                         const S* c, const S* center, const S* shift, T* dx, Index tables,
                         Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const S mu = mean[t], at = a[t], bt = b[t], ct = c[t];
    const S middle = G == kRecomputed ? center[t] : S(0), up = G == kRecomputed ? shift[t] : S(0);
    const T* __restrict from = grad + t * area;
    const T* __restrict row = x + t * area;
    T* __restrict to = dx + t * area;
#pragma omp simd
    for (Index i = 0; i < area; ++i) {
      const S value = load(row + i);
      const S g = through<G, T, S>(from + i, value, middle, at, up, nullptr, nullptr);
      store(to + i, at * g + (bt * (value - mu) + ct));
    }
  }
}

template <Gate G, typename T, typename S>
void input_gradient_columns(const T* grad, const T* x, const S* mean, const S* a, const S* b,
                            const S* c, const S* center, const S* shift, T* dx, Index samples,
                            Index channels, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index pixel = 0; pixel < samples * area; ++pixel) {
    const Index table = pixel / area * channels;
    const S *__restrict mu = mean + table, *__restrict at = a + table;
    const S *__restrict bt = b + table, *__restrict ct = c + table;
    const S* __restrict middle = G == kRecomputed ? center + table : mu;
    const S* __restrict up = G == kRecomputed ? shift + table : mu;
    const T* __restrict from = grad + pixel * channels;
    const T* __restrict row = x + pixel * channels;
    T* __restrict to = dx + pixel * channels;
#pragma omp simd
    for (Index i = 0; i < channels; ++i) {
      const S value = load(row + i);
      const S g = through<G, T, S>(from + i, value, middle[i], at[i], up[i], nullptr, nullptr);
      store(to + i, at[i] * g + (bt[i] * (value - mu[i]) + ct[i]));
    }
  }
}

}  // namespace

// ---- what cpp.py calls -------------------------------------------------------------------------
// A null residual adds nothing. In backward, y says that the ReLU's sign is y's, otherwise center
// that it is recomputed; without either no ReLU lies in between.

#define CALL(pass, flags, ...)                                                                     \
  (columns ? pass##_columns<flags>(__VA_ARGS__, n, c, area, threads)                               \
           : pass##_rows<flags>(__VA_ARGS__, n * c, area, threads))
#define BOTH(first, second) first, second
#define AFFINE(relu, add) CALL(affine, BOTH(relu, add), x, center, scale, shift, residual, y)
#define SUMS(gate) \
  CALL(gradient_sums, gate, grad, x, mean, sums, products, center, scale, shift, y, gated)
#define INPUT(gate) CALL(input_gradient, gate, grad, x, mean, a, b, k, center, shift, dx)

#define PASSES(suffix, T, S)                                                                       \
  extern "C" void moments_##suffix(const T* x, S* mean, S* var, Index n, Index c, Index area,      \
                                   int columns, int threads) {                                     \
    columns ? moments_columns(x, mean, var, n, c, area, threads)                                   \
            : moments_rows(x, mean, var, n * c, area, threads);                                    \
  }                                                                                                \
  extern "C" void affine_##suffix(const T* x, const S* center, const S* scale, const S* shift,     \
                                  const T* residual, T* y, int relu, Index n, Index c, Index area, \
                                  int columns, int threads) {                                      \
    if (relu) residual ? AFFINE(true, true) : AFFINE(true, false);                                 \
    else residual ? AFFINE(false, true) : AFFINE(false, false);                                    \
  }                                                                                                \
  extern "C" void gradient_sums_##suffix(const T* grad, const T* x, const S* mean, S* sums,        \
                                         S* products, const S* center, const S* scale,             \
                                         const S* shift, const T* y, T* gated, Index n, Index c,   \
                                         Index area, int columns, int threads) {                   \
    y ? SUMS(kOutput) : center ? SUMS(kRecomputed) : SUMS(kOpen);                                  \
  }                                                                                                \
  extern "C" void input_gradient_##suffix(const T* grad, const T* x, const S* mean, const S* a,    \
                                          const S* b, const S* k, const S* center, const S* shift, \
                                          T* dx, Index n, Index c, Index area, int columns,        \
                                          int threads) {                                           \
    center ? INPUT(kRecomputed) : INPUT(kOpen);                                                    \
  }

PASSES(float32, float, float)
PASSES(float64, double, double)
PASSES(bfloat16, BFloat16, float)
