// The node of a mixture's layer in autograd's graph: op.py's _Normalize without Python, which in
// small layers takes longer than the calls of layer.cpp that it goes between.
//
// PyTorch's headers, which it needs, take half a minute to compile: what has arithmetic in it lies
// in the other sources, which need none.

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

// As layer.cpp has them.
using Forward = void (*)(const void* calls, const void* layout, const void* x, const void* residual,
                         void* y, void* buffer, const void* stored_mean, const void* stored_var,
                         const void* gamma, const void* beta, const void* mean_logits,
                         const void* var_logits, double eps, int relu, int itemsize, Index n,
                         Index c, Index area, int columns, int threads);
using Backward = void (*)(const void* calls, const void* layout, const void* grad, const void* x,
                          const void* y, void* gated, void* dx, void* buffer, void* work,
                          int stored, const void* gamma, void* dgamma, void* dbeta,
                          void* dmean_logits, void* dvar_logits, int relu, int itemsize, Index n,
                          Index c, Index area, int columns, int threads);

// As combine.cpp has it.
using UpdateRunning = void (*)(void* running_mean, void* running_var, const void* mean,
                               const void* var, double momentum, double unbias, Index channels);

constexpr Index kGrain = 32768;  // cpp.py's GRAIN

// The sizes that every pass takes: cpp.py's layout().
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

// What the layer is made of beside its tensors, one tensor of numbers: cpp.py's _call(). The running
// statistics are moved if it updates them, read otherwise. layer.cpp's struct Calls, its functions and
// combine.cpp's are addresses.
struct Layer {
  Index size, replicas, members, bn_at, relu, updates, calls, forward, backward, update_running;
  double eps, momentum, unbias;
  Index layout[];  // as combine.cpp has it

  static const Layer& of(const Tensor& numbers) {
    return *static_cast<const Layer*>(numbers.data_ptr());
  }
};

struct Mixture : torch::autograd::Function<Mixture> {
  // y, and the buffer of the tables that it was made with.
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const MaybeTensor& residual,
                               const MaybeTensor& gamma, const MaybeTensor& beta,
                               const MaybeTensor& mean_logits, const MaybeTensor& var_logits,
                               const MaybeTensor& running_mean, const MaybeTensor& running_var,
                               const Tensor& numbers) {
    const Layer& layer = Layer::of(numbers);
    const auto dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor y = at::empty_like(x), buffer = at::empty({layer.size}, x.options().dtype(dtype));
    const Sizes s(x);
    const auto read = [&layer](const MaybeTensor& t) { return layer.updates ? nullptr : pointer(t); };
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
    // Behind a residual the ReLU's sign is the output's.
    const Tensor none;
    ctx->save_for_backward({x, layer.relu && residual ? y : none, gamma.value_or(none)});
    ctx->mark_non_differentiable({buffer});
    ctx->set_materialize_grads(false);
    ctx->saved_data["buffer"] = buffer;
    ctx->saved_data["numbers"] = numbers;
    ctx->saved_data["given"] = static_cast<Index>(
        1 << kX | bool(residual) << kResidual | bool(gamma) << kGamma | bool(beta) << kBeta |
        bool(mean_logits) << kMeanLogits | bool(var_logits) << kVarLogits |
        bool(running_mean) << kRunning);
    return {y, buffer};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(kInputs);
    if (!at::GradMode::is_enabled()) return gradients(ctx, grads[0]);
    // A graph of the gradients is asked for: differentiated once more, they say that they cannot.
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
    // Only inputs that there are have an edge in the graph.
    const Index given = ctx->saved_data["given"].toInt();
    const auto wanted = [ctx, given](Input i) {
      const auto before = __builtin_popcountll(given & ((Index{1} << i) - 1));
      return (given >> i & 1) && ctx->needs_input_grad(before);
    };
    const auto table = [&buffer](bool any, Index size) {
      return any ? at::empty({size}, buffer.options()) : Tensor();
    };
    const bool logits = wanted(kMeanLogits) || wanted(kVarLogits);  // both are made or neither
    const Tensor dgamma = table(wanted(kGamma), s.c), dbeta = table(wanted(kBeta), s.c);
    const Tensor dmean = table(logits, layer.members), dvar = table(logits, layer.members);
    const Tensor work = table(true, 6 * s.n * s.c + 2 * layer.replicas * s.c);
    const Tensor gated = y.defined() ? at::empty_like(x) : Tensor();
    const Tensor dx = wanted(kX) ? at::empty_like(x) : Tensor();
    const bool stored = (given >> kRunning & 1) && !layer.updates;
    reinterpret_cast<Backward>(layer.backward)(
        reinterpret_cast<void*>(layer.calls), layer.layout, pointer(grad), pointer(x), pointer(y),
        pointer(gated), pointer(dx), pointer(buffer), pointer(work), stored, pointer(gamma),
        pointer(dgamma), pointer(dbeta), pointer(dmean), pointer(dvar),
        static_cast<int>(layer.relu), static_cast<int>(buffer.itemsize()), s.n, s.c, s.area,
        s.columns, s.threads);
    const auto if_wanted = [&wanted](Input i, const Tensor& t) { return wanted(i) ? t : Tensor(); };
    const Tensor behind = y.defined() ? gated : grad;
    variable_list found(kInputs);
    found[kX] = dx;
    found[kResidual] = if_wanted(kResidual, behind);
    found[kGamma] = dgamma;
    found[kBeta] = dbeta;
    found[kMeanLogits] = if_wanted(kMeanLogits, dmean);
    found[kVarLogits] = if_wanted(kVarLogits, dvar);
    return found;
  }
};

std::tuple<Tensor, Tensor> mixture(const Tensor& x, const MaybeTensor& residual,
                                   const MaybeTensor& gamma, const MaybeTensor& beta,
                                   const MaybeTensor& mean_logits, const MaybeTensor& var_logits,
                                   const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                   const Tensor& numbers) {
  const auto made = Mixture::apply(x, residual, gamma, beta, mean_logits, var_logits, running_mean,
                                   running_var, numbers);
  return {made[0], made[1]};
}

}  // namespace

// Not a static object's work: a library is loaded twice when it is built, to see that it loads.
extern "C" void register_operator() {
  static auto library = torch::Library(torch::Library::FRAGMENT, "sn_imagenet", std::nullopt,
                                       __FILE__, __LINE__);
  library.def("mixture(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, "
              "Tensor? mean_logits, Tensor? var_logits, Tensor(a!)? running_mean, "
              "Tensor(b!)? running_var, Tensor numbers) -> (Tensor, Tensor)",
              mixture);
}
