// A mixture layer as a node of autograd's graph: op.py's _Normalize without Python, which in small
// layers takes longer than the calls of layer.cpp.
//
// This file needs PyTorch's headers, which take half a minute to compile. All arithmetic is in the
// other sources, which do not need them.

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using Index = int64_t;
using MaybeTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The signatures in layer.cpp.
using Forward = void (*)(const void* calls, const void* layout, const void* x, const void* residual,
                         void* y, void* buffer, const void* stored_mean, const void* stored_var,
                         const void* gamma, const void* beta, const void* mean_logits,
                         const void* var_logits, double eps, int relu, int itemsize, Index n,
                         Index c, Index area, int columns, int threads);
using Backward = void (*)(const void* calls, const void* layout, const void* grad, const void* x,
                          const void* y, void* masked, void* dx, void* buffer, void* work,
                          int stored, const void* gamma, void* dgamma, void* dbeta,
                          void* dmean_logits, void* dvar_logits, int relu, int itemsize, Index n,
                          Index c, Index area, int columns, int threads);

// The signature in combine.cpp.
using UpdateRunning = void (*)(void* running_mean, void* running_var, const void* mean,
                               const void* var, double momentum, double unbias, Index channels);

constexpr Index kGrain = 32768;  // GRAIN of kernels/cpp.py

// The sizes that every kernel takes: kernel_sizes() of kernels/cpp.py.
struct Sizes {
  Index n, c, area;
  int columns, threads;

  explicit Sizes(const Tensor& x)
      : n(x.size(0)), c(x.size(1)), area(x.size(2) * x.size(3)),
        columns(area == 1 || !x.is_contiguous()),
        threads(x.numel() > kGrain ? at::get_num_threads() : 1) {}
};

void* pointer(const Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }
void* pointer(const MaybeTensor& tensor) { return tensor ? pointer(*tensor) : nullptr; }

enum Input { kX, kResidual, kGamma, kBeta, kMeanLogits, kVarLogits, kRunning, kInputs = 9 };

// The layer's numbers, as one tensor: _node_arguments() of closed_form/cpp.py. If `updates`, the
// running statistics are updated, else they are read. `calls` (layer.cpp's struct), `forward`,
// `backward` and `update_running` are addresses.
struct Layer {
  Index size, replicas, members, bn_at, relu, updates, calls, forward, backward, update_running;
  double eps, momentum, unbias;
  Index layout[];  // struct Layout of members.h

  static const Layer& of(const Tensor& numbers) {
    return *static_cast<const Layer*>(numbers.data_ptr());
  }
};

struct Mixture : torch::autograd::Function<Mixture> {
  // Returns y and the buffer of the tables that it was computed with.
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const MaybeTensor& residual,
                               const MaybeTensor& gamma, const MaybeTensor& beta,
                               const MaybeTensor& mean_logits, const MaybeTensor& var_logits,
                               const MaybeTensor& running_mean, const MaybeTensor& running_var,
                               const Tensor& numbers) {
    const Layer& layer = Layer::of(numbers);
    const auto dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor y = at::empty_like(x), buffer = at::empty({layer.size}, x.options().dtype(dtype));
    const Sizes s(x);
    const auto read = [&](const MaybeTensor& t) { return layer.updates ? nullptr : pointer(t); };
    reinterpret_cast<Forward>(layer.forward)(
        reinterpret_cast<void*>(layer.calls), layer.layout, pointer(x), pointer(residual),
        pointer(y), pointer(buffer), read(running_mean), read(running_var), pointer(gamma),
        pointer(beta), pointer(mean_logits), pointer(var_logits), layer.eps,
        static_cast<int>(layer.relu), static_cast<int>(buffer.itemsize()), s.n, s.c, s.area,
        s.columns, s.threads);
    if (layer.updates) {
      const auto bn = static_cast<char*>(pointer(buffer)) + layer.bn_at * buffer.itemsize();
      reinterpret_cast<UpdateRunning>(layer.update_running)(
          pointer(running_mean), pointer(running_var), bn,
          bn + layer.replicas * s.c * buffer.itemsize(), layer.momentum, layer.unbias, s.c);
    }
    // After a residual the ReLU's sign is read from the output.
    const Tensor none;
    ctx->save_for_backward({x, layer.relu && residual ? y : none, gamma.value_or(none)});
    ctx->mark_non_differentiable({buffer});
    ctx->set_materialize_grads(false);
    ctx->saved_data["buffer"] = buffer;
    ctx->saved_data["numbers"] = numbers;
    ctx->saved_data["inputs"] = static_cast<Index>(
        1 << kX | bool(residual) << kResidual | bool(gamma) << kGamma | bool(beta) << kBeta |
        bool(mean_logits) << kMeanLogits | bool(var_logits) << kVarLogits |
        bool(running_mean) << kRunning);
    return {y, buffer};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(kInputs);
    if (!at::GradMode::is_enabled()) return gradients(ctx, grads[0]);
    // With create_graph=True the gradients carry a graph that raises when it is differentiated.
    variable_list once;
    {
      const at::NoGradGuard guard;
      once = gradients(ctx, grads[0].detach());
    }
    for (Tensor& gradient : once)
      if (gradient.defined()) gradient.requires_grad_();
    const std::string text =
        "trying to differentiate twice a function that was marked with @once_differentiable";
    torch::autograd::DelayedError error(text, once.size());
    return error.apply(std::move(once));
  }

 private:
  static variable_list gradients(AutogradContext* ctx, Tensor grad) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &y = saved[1], &gamma = saved[2];
    const Tensor buffer = ctx->saved_data["buffer"].toTensor();
    const Tensor numbers = ctx->saved_data["numbers"].toTensor();
    const Layer& layer = Layer::of(numbers);
    const Sizes s(x);
    const auto memory =
        x.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
    grad = grad.to(x.scalar_type()).contiguous(memory);
    // Only inputs that are present have an edge in the graph.
    const Index present = ctx->saved_data["inputs"].toInt();
    const auto wanted = [ctx, present](Input i) {
      const auto index = __builtin_popcountll(present & ((Index{1} << i) - 1));
      return (present >> i & 1) && ctx->needs_input_grad(index);
    };
    const auto table = [&buffer](bool any, Index size) {
      return any ? at::empty({size}, buffer.options()) : Tensor();
    };
    const bool logits = wanted(kMeanLogits) || wanted(kVarLogits);  // both are computed or neither
    const Tensor dgamma = table(wanted(kGamma), s.c), dbeta = table(wanted(kBeta), s.c);
    const Tensor dmean = table(logits, layer.members), dvar = table(logits, layer.members);
    const Tensor work = table(true, 6 * s.n * s.c + 2 * layer.replicas * s.c);
    const Tensor masked = y.defined() ? at::empty_like(x) : Tensor();
    const Tensor dx = wanted(kX) ? at::empty_like(x) : Tensor();
    const bool stored = (present >> kRunning & 1) && !layer.updates;
    reinterpret_cast<Backward>(layer.backward)(
        reinterpret_cast<void*>(layer.calls), layer.layout, pointer(grad), pointer(x), pointer(y),
        pointer(masked), pointer(dx), pointer(buffer), pointer(work), stored, pointer(gamma),
        pointer(dgamma), pointer(dbeta), pointer(dmean), pointer(dvar),
        static_cast<int>(layer.relu), static_cast<int>(buffer.itemsize()), s.n, s.c, s.area,
        s.columns, s.threads);
    const auto if_wanted = [&wanted](Input i, const Tensor& t) { return wanted(i) ? t : Tensor(); };
    const Tensor residual_grad = y.defined() ? masked : grad;
    variable_list results(kInputs);
    results[kX] = dx;
    results[kResidual] = if_wanted(kResidual, residual_grad);
    results[kGamma] = dgamma;
    results[kBeta] = dbeta;
    results[kMeanLogits] = if_wanted(kMeanLogits, dmean);
    results[kVarLogits] = if_wanted(kVarLogits, dvar);
    return results;
  }
};

std::tuple<Tensor, Tensor> mixture(const Tensor& x, const MaybeTensor& residual,
                                   const MaybeTensor& gamma, const MaybeTensor& beta,
                                   const MaybeTensor& mean_logits, const MaybeTensor& var_logits,
                                   const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                   const Tensor& numbers) {
  const auto outputs = Mixture::apply(x, residual, gamma, beta, mean_logits, var_logits,
                                      running_mean, running_var, numbers);
  return {outputs[0], outputs[1]};
}

}  // namespace

// Not done by a static object, since a new library is loaded twice: first to check that it loads.
extern "C" void register_operator() {
  static auto library = torch::Library(torch::Library::FRAGMENT, "sn_imagenet", std::nullopt,
                                       __FILE__, __LINE__);
  library.def("mixture(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, "
              "Tensor? mean_logits, Tensor? var_logits, Tensor(a!)? running_mean, "
              "Tensor(b!)? running_var, Tensor numbers) -> (Tensor, Tensor)",
              mixture);
}
