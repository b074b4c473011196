// The four passes over an activation (see Backend), for CPUs.
//
// Compiled on first use by compiler.py and called through ctypes: plain pointers and sizes, no
// PyTorch headers, so that it builds in seconds. T is the activation's type, S the tables':
// float for float and bfloat16, double for double. "rows" kernels take contiguous memory, where
// each (n, c) is one run of HW values; "columns" kernels take channels_last memory, [N, HW, C].

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Index = int64_t;
struct BFloat16 {
  uint16_t bits;
};

template <typename T> struct Statistic { using Type = T; };
template <> struct Statistic<BFloat16> { using Type = float; };

inline float load(const float* x) { return *x; }
inline double load(const double* x) { return *x; }
inline float load(const BFloat16* x) {
  uint32_t bits = uint32_t(x->bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void store(float* y, float value) { *y = value; }
inline void store(double* y, double value) { *y = value; }
inline void store(BFloat16* y, float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  y->bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// ---- sums over one row -------------------------------------------------------------------------
// Several independent accumulators hide the latency of addition and halve the rounding error's
// growth; a plain loop may not be reordered by the compiler.

constexpr int kLanes = 64;

template <typename S, typename Term> inline S sum(Index size, Term term) {
  Index i = 0;
  S total = 0;
  if (size >= 4 * kLanes) {  // shorter rows do not repay the folding of the lanes
    S lanes[kLanes] = {};
    for (; i + kLanes <= size; i += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
    }
    for (int width = kLanes / 2; width > 0; width /= 2)
      for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    total = lanes[0];
  }
#pragma omp simd reduction(+ : total)
  for (Index j = i; j < size; ++j) total += term(j);
  return total;
}

// Rows of channels_last memory that are summed before they join the total: short enough to stay in
// cache for a second look, long enough that joining costs little.
inline Index chunk_rows(Index channels) { return std::max<Index>(16, 8192 / channels); }

// With fewer samples than threads, channels_last work is also split into blocks of channels.
inline Index column_block(Index samples, Index channels, int threads) {
  if (samples >= threads) return channels;
  Index blocks = (threads + samples - 1) / samples;
  Index block = (channels + blocks - 1) / blocks;
  return std::max<Index>(64, (block + 15) / 16 * 16);
}

// ---- moments -----------------------------------------------------------------------------------

template <typename T, typename S>
void moments_rows(const T* x, S* mean, S* var, Index tables, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const T* row = x + t * area;
    S mu = sum<S>(area, [=](Index i) { return load(row + i); }) / S(area);
    mean[t] = mu;
    var[t] = sum<S>(area, [=](Index i) {
      S centered = load(row + i) - mu;
      return centered * centered;
    }) / S(area);
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
    S* __restrict total_mean = mean + n * channels + first;
    S* __restrict total_square = var + n * channels + first;
    std::fill_n(total_mean, width, S(0));
    std::fill_n(total_square, width, S(0));
    std::vector<S> buffer(2 * width);
    S* __restrict mu = buffer.data();
    S* __restrict square = mu + width;
    for (Index start = 0; start < area; start += rows) {
      const Index count = std::min(rows, area - start);
      const T* __restrict chunk = x + (n * area + start) * channels + first;
      std::fill_n(mu, 2 * width, S(0));
      Index i = 0;
      for (; i + 4 <= count; i += 4) {
        const T* __restrict row = chunk + i * channels;
#pragma omp simd
        for (Index c = 0; c < width; ++c)
          mu[c] += (load(row + c) + load(row + channels + c)) +
                   (load(row + 2 * channels + c) + load(row + 3 * channels + c));
      }
      for (; i < count; ++i) {
        const T* __restrict row = chunk + i * channels;
#pragma omp simd
        for (Index c = 0; c < width; ++c) mu[c] += load(row + c);
      }
      const S inverse = S(1) / S(count);
#pragma omp simd
      for (Index c = 0; c < width; ++c) mu[c] *= inverse;
      i = 0;
      for (; i + 4 <= count; i += 4) {
        const T* __restrict row = chunk + i * channels;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S a = load(row + c) - mu[c], b = load(row + channels + c) - mu[c];
          S d = load(row + 2 * channels + c) - mu[c], e = load(row + 3 * channels + c) - mu[c];
          square[c] += (a * a + b * b) + (d * d + e * e);
        }
      }
      for (; i < count; ++i) {
        const T* __restrict row = chunk + i * channels;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S a = load(row + c) - mu[c];
          square[c] += a * a;
        }
      }
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

// ---- affine: y = (x - center) * scale + shift --------------------------------------------------

template <typename T, typename S>
void affine_rows(const T* x, const S* center, const S* scale, const S* shift, T* y, Index tables,
                 Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const S a = center[t], b = scale[t], c = shift[t];
    const T* __restrict from = x + t * area;
    T* __restrict to = y + t * area;
#pragma omp simd
    for (Index i = 0; i < area; ++i) store(to + i, (load(from + i) - a) * b + c);
  }
}

template <typename T, typename S>
void affine_columns(const T* x, const S* center, const S* scale, const S* shift, T* y,
                    Index samples, Index channels, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index pixel = 0; pixel < samples * area; ++pixel) {
    const Index n = pixel / area;
    const S* __restrict a = center + n * channels;
    const S* __restrict b = scale + n * channels;
    const S* __restrict s = shift + n * channels;
    const T* __restrict from = x + pixel * channels;
    T* __restrict to = y + pixel * channels;
#pragma omp simd
    for (Index c = 0; c < channels; ++c) store(to + c, (load(from + c) - a[c]) * b[c] + s[c]);
  }
}

// ---- backward's sums: of grad, and of grad * (x - mean) ----------------------------------------

template <typename T, typename S>
void gradient_sums_rows(const T* grad, const T* x, const S* mean, S* sums, S* products,
                        Index tables, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const T* g = grad + t * area;
    const T* row = x + t * area;
    const S mu = mean[t];
    sums[t] = sum<S>(area, [=](Index i) { return load(g + i); });
    products[t] = sum<S>(area, [=](Index i) { return load(g + i) * (load(row + i) - mu); });
  }
}

template <typename T, typename S>
void gradient_sums_columns(const T* grad, const T* x, const S* mean, S* sums, S* products,
                           Index samples, Index channels, Index area, int threads) {
  const Index block = column_block(samples, channels, threads);
  const Index blocks = (channels + block - 1) / block;
  const Index rows = chunk_rows(channels);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index item = 0; item < samples * blocks; ++item) {
    const Index first = item % blocks * block;
    const Index width = std::min(block, channels - first);
    const Index n = item / blocks;
    const S* __restrict mu = mean + n * channels + first;
    S* __restrict total = sums + n * channels + first;
    S* __restrict total_product = products + n * channels + first;
    std::fill_n(total, width, S(0));
    std::fill_n(total_product, width, S(0));
    std::vector<S> buffer(2 * width);
    S* __restrict part = buffer.data();
    S* __restrict product = part + width;
    for (Index start = 0; start < area; start += rows) {
      const Index count = std::min(rows, area - start);
      const Index offset = (n * area + start) * channels + first;
      std::fill_n(part, 2 * width, S(0));
      Index i = 0;
      for (; i + 4 <= count; i += 4) {
        const T* __restrict g = grad + offset + i * channels;
        const T* __restrict row = x + offset + i * channels;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          S g0 = load(g + c), g1 = load(g + channels + c);
          S g2 = load(g + 2 * channels + c), g3 = load(g + 3 * channels + c);
          part[c] += (g0 + g1) + (g2 + g3);
          product[c] += (g0 * (load(row + c) - mu[c]) + g1 * (load(row + channels + c) - mu[c])) +
                        (g2 * (load(row + 2 * channels + c) - mu[c]) +
                         g3 * (load(row + 3 * channels + c) - mu[c]));
        }
      }
      for (; i < count; ++i) {
        const T* __restrict g = grad + offset + i * channels;
        const T* __restrict row = x + offset + i * channels;
#pragma omp simd
        for (Index c = 0; c < width; ++c) {
          part[c] += load(g + c);
          product[c] += load(g + c) * (load(row + c) - mu[c]);
        }
      }
#pragma omp simd
      for (Index c = 0; c < width; ++c) {
        total[c] += part[c];
        total_product[c] += product[c];
      }
    }
  }
}

// ---- dx = a * grad + b * (x - mean) + c --------------------------------------------------------

template <typename T, typename S>
void input_gradient_rows(const T* grad, const T* x, const S* mean, const S* a, const S* b,
                         const S* c, T* dx, Index tables, Index area, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index t = 0; t < tables; ++t) {
    const S mu = mean[t], at = a[t], bt = b[t], ct = c[t];
    const T* __restrict g = grad + t * area;
    const T* __restrict row = x + t * area;
    T* __restrict to = dx + t * area;
#pragma omp simd
    for (Index i = 0; i < area; ++i)
      store(to + i, at * load(g + i) + (bt * (load(row + i) - mu) + ct));
  }
}

template <typename T, typename S>
void input_gradient_columns(const T* grad, const T* x, const S* mean, const S* a, const S* b,
                            const S* c, T* dx, Index samples, Index channels, Index area,
                            int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index pixel = 0; pixel < samples * area; ++pixel) {
    const Index table = pixel / area * channels;
    const S* __restrict mu = mean + table;
    const S* __restrict at = a + table;
    const S* __restrict bt = b + table;
    const S* __restrict ct = c + table;
    const T* __restrict g = grad + pixel * channels;
    const T* __restrict row = x + pixel * channels;
    T* __restrict to = dx + pixel * channels;
#pragma omp simd
    for (Index i = 0; i < channels; ++i)
      store(to + i, at[i] * load(g + i) + (bt[i] * (load(row + i) - mu[i]) + ct[i]));
  }
}

}  // namespace

// ---- what compiler.py calls --------------------------------------------------------------------

#define PASSES(suffix, T)                                                                          \
  extern "C" void moments_##suffix(const T* x, Statistic<T>::Type* mean,                           \
                                   Statistic<T>::Type* var, Index n, Index c, Index area,          \
                                   int columns, int threads) {                                     \
    columns ? moments_columns(x, mean, var, n, c, area, threads)                                   \
            : moments_rows(x, mean, var, n * c, area, threads);                                    \
  }                                                                                                \
  extern "C" void affine_##suffix(                                                                 \
      const T* x, const Statistic<T>::Type* center, const Statistic<T>::Type* scale,               \
      const Statistic<T>::Type* shift, T* y, Index n, Index c, Index area, int columns,            \
      int threads) {                                                                               \
    columns ? affine_columns(x, center, scale, shift, y, n, c, area, threads)                      \
            : affine_rows(x, center, scale, shift, y, n * c, area, threads);                       \
  }                                                                                                \
  extern "C" void gradient_sums_##suffix(                                                          \
      const T* grad, const T* x, const Statistic<T>::Type* mean, Statistic<T>::Type* sums,         \
      Statistic<T>::Type* products, Index n, Index c, Index area, int columns, int threads) {      \
    columns ? gradient_sums_columns(grad, x, mean, sums, products, n, c, area, threads)            \
            : gradient_sums_rows(grad, x, mean, sums, products, n * c, area, threads);             \
  }                                                                                                \
  extern "C" void input_gradient_##suffix(                                                         \
      const T* grad, const T* x, const Statistic<T>::Type* mean, const Statistic<T>::Type* a,      \
      const Statistic<T>::Type* b, const Statistic<T>::Type* k, T* dx, Index n, Index c,           \
      Index area, int columns, int threads) {                                                      \
    columns ? input_gradient_columns(grad, x, mean, a, b, k, dx, n, c, area, threads)              \
            : input_gradient_rows(grad, x, mean, a, b, k, dx, n * c, area, threads);               \
  }

PASSES(float32, float)
PASSES(float64, double)
PASSES(bfloat16, BFloat16)
