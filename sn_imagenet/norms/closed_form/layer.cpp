// One forward or backward pass of a mixture layer: calls the functions of kernels.cpp and
// combine.cpp in their order, so that Python makes one call instead of five. In small layers calls
// cost more than arithmetic. No number is read here: the functions in Calls determine the types.

#include <cstddef>
#include <cstdint>

namespace {

using Index = int64_t;

struct Calls {
  void (*moments)(const void*, void*, void*, Index, Index, Index, int, int);
  void (*affine)(const void*, const void*, const void*, const void*, const void*, void*, int, Index,
                 Index, Index, int, int);
  void (*gradient_sums)(const void*, const void*, const void*, void*, void*, const void*,
                        const void*, const void*, const void*, void*, Index, Index, Index, int,
                        int);
  void (*input_gradient)(const void*, const void*, const void*, const void*, const void*,
                         const void*, const void*, const void*, void*, Index, Index, Index, int,
                         int);
  void (*statistics)(const void*, void*, const void*, const void*, int);
  void (*coefficients)(const void*, void*, const void*, const void*, const void*, const void*,
                       double, int);
  void (*sums)(const void*, void*, const void*, const void*, void*, void*, void*, void*, void*,
               void*, int);
  void (*gradient)(const void*, void*, const void*, const void*, void*, void*, int);
};

struct Tables {
  char *mean, *var, *center, *scale, *shift;
  Tables(char* start, Index size)
      : mean(start), var(mean + size), center(var + size), scale(center + size),
        shift(scale + size) {}
};

}  // namespace

extern "C" void mixture_forward(const Calls* calls, const void* layout, const void* x,
                                const void* residual, void* y, char* buffer,
                                const void* stored_mean, const void* stored_var, const void* gamma,
                                const void* beta, const void* mean_logits, const void* var_logits,
                                double eps, int relu, int itemsize, Index n, Index c, Index area,
                                int columns, int threads) {
  const Tables t(buffer, n * c * itemsize);
  calls->moments(x, t.mean, t.var, n, c, area, columns, threads);
  calls->statistics(layout, buffer, stored_mean, stored_var, threads);
  calls->coefficients(layout, buffer, mean_logits, var_logits, gamma, beta, eps, threads);
  calls->affine(x, t.center, t.scale, t.shift, residual, y, relu, n, c, area, columns, threads);
}

// `y`: the output if the ReLU's sign is read from it; the masked gradient then goes to `masked`.
// `work` holds 6 tables (backward's sums and the gradients of the combined statistics, two each, b
// and c) and the averages of those gradients over BN's sets. With `stored`, BN uses stored
// statistics; without `dx`, only the parameters' gradients are computed.
extern "C" void mixture_backward(const Calls* calls, const void* layout, const void* grad,
                                 const void* x, const void* y, void* masked, void* dx, char* buffer,
                                 char* work, int stored, const void* gamma, void* dgamma,
                                 void* dbeta, void* dmean_logits, void* dvar_logits, int relu,
                                 int itemsize, Index n, Index c, Index area, int columns,
                                 int threads) {
  const Index size = n * c * itemsize;
  const Tables t(buffer, size);
  char *sums = work, *products = sums + size, *gradients = products + size;
  char *b = gradients + 2 * size, *k = b + size, *batch = k + size;
  const bool recompute = relu && !y;
  const void *center = recompute ? t.center : nullptr, *shift = recompute ? t.shift : nullptr;
  calls->gradient_sums(grad, x, t.mean, sums, products, center, recompute ? t.scale : nullptr,
                       shift, y, masked, n, c, area, columns, threads);
  calls->sums(layout, buffer, sums, gamma, gradients, batch, dgamma, dbeta, dmean_logits,
              dvar_logits, threads);
  if (!dx) return;
  calls->gradient(layout, buffer, gradients, stored ? nullptr : batch, b, k, threads);
  calls->input_gradient(y ? masked : grad, x, t.mean, t.scale, b, k, center, shift, dx, n, c, area,
                        columns, threads);
}
