// Normalization of a batch of uint8 images on the CPU, in one pass over the pixels.
//
// Compiled on first use by sn_imagenet/native, with -ffp-contract=off. Every operation rounds
// its result, so the numbers are those of a sequence of PyTorch operators.

#include <cstdint>
#include <vector>

// stored: [images, height, width, 3]; shifts: [images, 3] or null; mean, std: [3]; out: shape of
// stored, float.
extern "C" void normalize(const uint8_t* stored, const float* shifts, const float* mean,
                          const float* std, float* out, int64_t images, int64_t height,
                          int64_t width, int threads) {
  const int64_t row = 3 * width;
  const float scale = static_cast<float>(1.0 / 255);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t n = 0; n < images; ++n) {
    // Repeated to the length of a row, so that the inner loop runs over the whole row.
    std::vector<float> means(row), stds(row), shift(row);
    for (int64_t i = 0; i < row; ++i) {
      means[i] = mean[i % 3];
      stds[i] = std[i % 3];
      if (shifts) shift[i] = shifts[3 * n + i % 3];
    }
    for (int64_t y = 0; y < height; ++y) {
      const int64_t at = (n * height + y) * row;
      const uint8_t* __restrict in = stored + at;
      const float *__restrict m = means.data(), *__restrict d = stds.data();
      const float* __restrict s = shift.data();
      float* __restrict to = out + at;
      if (shifts) {
        for (int64_t i = 0; i < row; ++i) to[i] = ((in[i] * scale + s[i]) - m[i]) / d[i];
      } else {
        for (int64_t i = 0; i < row; ++i) to[i] = (in[i] * scale - m[i]) / d[i];
      }
    }
  }
}
