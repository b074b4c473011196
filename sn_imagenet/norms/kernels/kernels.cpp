// The kernels over an activation (see Backend), for CPUs.
//
// Compiled on first use by compiler.py and called through ctypes: plain pointers and sizes, no
// PyTorch headers, so that it builds in seconds. T is the activation's type, S that of the tables:
// float for float and bfloat16, double for double. "rows" kernels take contiguous memory, where
// each (n, c) is HW consecutive values; "columns" kernels take channels_last memory, [N, HW, C].

#include "elements.h"

namespace {

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

// One chunk of rows at a time, each centered on its own mean, merged by Chan et al.'s update.
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

}  // namespace

// ---- the functions that cpp.py calls -----------------------------------------------------------
// A null residual adds nothing. In backward, the ReLU's sign is read from y if y is given, else
// recomputed if center is given; without either there is no ReLU.

#define CALL(kernel, flags, ...)                                                                   \
  (columns ? kernel##_columns<flags>(__VA_ARGS__, n, c, area, threads)                             \
           : kernel##_rows<flags>(__VA_ARGS__, n * c, area, threads))
#define BOTH(first, second) first, second
#define AFFINE(relu, add) CALL(affine, BOTH(relu, add), x, center, scale, shift, residual, y)
#define SUMS(mask) \
  CALL(gradient_sums, mask, grad, x, mean, sums, products, center, scale, shift, y, masked)
#define INPUT(mask) CALL(input_gradient, mask, grad, x, mean, a, b, k, center, shift, dx)

#define KERNELS(suffix, T, S)                                                                      \
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
                                         const S* shift, const T* y, T* masked, Index n, Index c,  \
                                         Index area, int columns, int threads) {                   \
    y ? SUMS(kOutput) : center ? SUMS(kRecomputed) : SUMS(kNoMask);                                \
  }                                                                                                \
  extern "C" void input_gradient_##suffix(const T* grad, const T* x, const S* mean, const S* a,    \
                                          const S* b, const S* k, const S* center, const S* shift, \
                                          T* dx, Index n, Index c, Index area, int columns,        \
                                          int threads) {                                           \
    center ? INPUT(kRecomputed) : INPUT(kNoMask);                                                  \
  }

KERNELS(float32, float, float)
KERNELS(float64, double, double)
KERNELS(bfloat16, BFloat16, float)
