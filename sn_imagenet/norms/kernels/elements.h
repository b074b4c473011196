// Operations of the kernels on one element and on one row.

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

template <typename S> inline S affine(S x, S center, S scale, S shift) {
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
  if constexpr (M == kRecomputed) g = affine(x, center, scale, shift) <= 0 ? S(0) : g;
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

}  // namespace
