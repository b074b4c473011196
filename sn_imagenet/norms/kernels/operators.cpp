// The kernels over an activation, and a whole mixture layer, as operators of PyTorch.
//
// cpp.py compiles this file at first use and adds the fake implementations. PyTorch's headers take
// most of the time; all arithmetic is in headers that do not need them.

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "combine.h"
#include "kernels.h"

namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr Index kGrain = 32768;  // with fewer elements a second thread costs more than it saves

Sizes sizes_of(const Tensor& x) {
  TORCH_CHECK(x.dim() == 4, "expected x [N, C, H, W], got ", x.sizes());
  const Index area = x.size(2) * x.size(3);
  // A 1x1 map has both layouts; as [N, C] it has long rows.
  return {x.size(0), x.size(1), area, area == 1 || !x.is_contiguous(),
          x.numel() > kGrain ? at::get_num_threads() : 1};
}

// Calls body<T, S>() with the activation's type and that of its tables.
template <typename Body> void by_type(const Tensor& x, Body body) {
  switch (x.scalar_type()) {
    case at::kFloat: return body.template operator()<float, float>();
    case at::kDouble: return body.template operator()<double, double>();
    case at::kBFloat16: return body.template operator()<BFloat16, float>();
    default: TORCH_CHECK(false, "expected float32, float64 or bfloat16, got ", x.scalar_type());
  }
}

at::ScalarType table_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Tensor new_table(const Tensor& x, at::IntArrayRef shape) {
  return at::detail::empty_cpu(shape, table_type(x));
}

Tensor new_like(const Tensor& x) {
  return at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type());
}

at::MemoryFormat layout_of(const Tensor& x) {
  return x.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
}

// The memory of an activation, which has x's shape, dtype and layout; null if it is absent.
template <typename T> T* pixels(const Tensor& tensor, const Tensor& x) {
  if (!tensor.defined()) return nullptr;
  TORCH_CHECK(tensor.scalar_type() == x.scalar_type() && tensor.sizes() == x.sizes() &&
                  tensor.is_contiguous(layout_of(x)),
              "expected ", x.sizes(), " of ", x.scalar_type(), ", contiguous or channels_last as x");
  return static_cast<T*>(tensor.data_ptr());
}

// The memory of a table of `size` entries, of the type for x; null if it is absent.
template <typename S> S* table(const Tensor& tensor, Index size) {
  if (!tensor.defined()) return nullptr;
  TORCH_CHECK(tensor.numel() == size && tensor.is_contiguous(), "expected a contiguous table of ",
              size, " entries, got ", tensor.sizes());
  return tensor.data_ptr<S>();  // checks the type
}

const Tensor& or_none(const MaybeTensor& tensor) {
  static const Tensor none;
  return tensor ? *tensor : none;
}

// A parameter or running statistics as a table for x: a copy if its dtype or layout is another.
Tensor as_table(const MaybeTensor& tensor, const Tensor& x) {
  return tensor ? tensor->to(table_type(x)).contiguous() : Tensor();
}

// ---- the kernels -------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> moments(const Tensor& x) {
  const Sizes s = sizes_of(x);
  const Tensor mean = new_table(x, {s.samples, s.channels}), var = new_table(x, mean.sizes());
  by_type(x, [&]<typename T, typename S>() {
    compute_moments(pixels<T>(x, x), mean.data_ptr<S>(), var.data_ptr<S>(), s);
  });
  return {mean, var};
}

Tensor affine(const Tensor& x, const Tensor& center, const Tensor& scale, const Tensor& shift,
              const MaybeTensor& residual, bool relu) {
  const Sizes s = sizes_of(x);
  const Index size = s.samples * s.channels;
  const Tensor y = new_like(x);
  by_type(x, [&]<typename T, typename S>() {
    compute_affine(pixels<T>(x, x), table<S>(center, size), table<S>(scale, size),
                   table<S>(shift, size), pixels<T>(or_none(residual), x), pixels<T>(y, x), relu,
                   s);
  });
  return y;
}

// Returns the sums [2, N, C] and, if y is given, the masked gradient.
std::tuple<Tensor, Tensor> gradient_sums(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                         const MaybeTensor& center, const MaybeTensor& scale,
                                         const MaybeTensor& shift, const MaybeTensor& y) {
  const Sizes s = sizes_of(x);
  const Index size = s.samples * s.channels;
  const Tensor sums = new_table(x, {2, s.samples, s.channels});
  const Tensor masked = y ? new_like(x) : Tensor();
  by_type(x, [&]<typename T, typename S>() {
    compute_gradient_sums(pixels<T>(grad, x), pixels<T>(x, x), table<S>(mean, size),
                          sums.data_ptr<S>(), sums.data_ptr<S>() + size,
                          table<S>(or_none(center), size), table<S>(or_none(scale), size),
                          table<S>(or_none(shift), size), pixels<T>(or_none(y), x),
                          pixels<T>(masked, x), s);
  });
  return {sums, masked};
}

Tensor input_gradient(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& a,
                      const Tensor& b, const Tensor& c, const MaybeTensor& center,
                      const MaybeTensor& shift) {
  const Sizes s = sizes_of(x);
  const Index size = s.samples * s.channels;
  const Tensor dx = new_like(x);
  by_type(x, [&]<typename T, typename S>() {
    compute_input_gradient(pixels<T>(grad, x), pixels<T>(x, x), table<S>(mean, size),
                           table<S>(a, size), table<S>(b, size), table<S>(c, size),
                           table<S>(or_none(center), size), table<S>(or_none(shift), size),
                           pixels<T>(dx, x), s);
  });
  return dx;
}

// ---- a mixture layer ---------------------------------------------------------------------------

Layout layout_for(const Tensor& x, at::IntArrayRef members, Index channel_groups, Index replicas) {
  const Index count = static_cast<Index>(members.size());
  TORCH_CHECK(0 < count && count <= kMembers, "expected 1 to 4 members, got ", count);
  TORCH_CHECK_VALUE(x.size(0) % replicas == 0, "a batch of ", x.size(0), " samples cannot be "
                    "divided evenly into ", replicas, " statistics groups; see set_replicas");
  TORCH_CHECK_VALUE(x.size(1) % channel_groups == 0, "num_groups=", channel_groups,
                    " does not divide ", x.size(1), " channels");
  return layout_of(x.size(0), replicas, x.size(1), channel_groups, x.size(2) * x.size(3),
                   members.data(), count);
}

// Returns y and the tables, which backward needs. The running statistics are used (`stored`), or
// updated (if there is a momentum), or neither.
std::tuple<Tensor, Tensor> mixture(const Tensor& x, const MaybeTensor& residual,
                                   const MaybeTensor& weight, const MaybeTensor& bias,
                                   const MaybeTensor& mean_logits, const MaybeTensor& var_logits,
                                   const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                   at::IntArrayRef members, Index channel_groups, Index replicas,
                                   double eps, bool relu, bool stored,
                                   std::optional<double> momentum, double unbias) {
  const Sizes s = sizes_of(x);
  const Layout layout = layout_for(x, members, channel_groups, replicas);
  const Index c = s.channels, k = layout.count, size = buffer_size(layout);
  const Tensor y = new_like(x), buffer = new_table(x, {size});
  const Tensor mean = as_table(running_mean, x), var = as_table(running_var, x);
  const Tensor gamma = as_table(weight, x), beta = as_table(bias, x);
  const Tensor mean_lambda = as_table(mean_logits, x), var_lambda = as_table(var_logits, x);
  by_type(x, [&]<typename T, typename S>() {
    const Tables<S> t(layout, buffer.data_ptr<S>());
    S *m = table<S>(mean, c), *v = table<S>(var, c);
    compute_moments(pixels<T>(x, x), t.mean, t.var, s);
    mixture_statistics(layout, t.mean, stored ? m : nullptr, stored ? v : nullptr, s.threads);
    mixture_coefficients(layout, t.mean, table<S>(mean_lambda, k), table<S>(var_lambda, k),
                         table<S>(gamma, c), table<S>(beta, c), eps, s.threads);
    compute_affine(pixels<T>(x, x), t.center, t.scale, t.shift, pixels<T>(or_none(residual), x),
                   pixels<T>(y, x), relu, s);
    if (!momentum) return;
    const S* batch = t.mean + size - 2 * replicas * c;
    update_running(m, v, batch, batch + replicas * c, *momentum, unbias, c);
  });
  if (momentum)
    for (const auto& [to, from] : {std::pair(*running_mean, mean), std::pair(*running_var, var)})
      to.is_same(from) ? to.unsafeGetTensorImpl()->bump_version() : void(to.copy_(from));
  return {y, buffer};
}

// Returns the gradients of x, of the residual if y is given (the output, from which the ReLU's sign
// is then read), weight, bias, mean_logits and var_logits; undefined where they are not wanted.
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
Gradients mixture_backward(const Tensor& grad, const Tensor& x, const MaybeTensor& y,
                           const Tensor& buffer, const MaybeTensor& weight, const MaybeTensor& bias,
                           const MaybeTensor& mean_logits, const MaybeTensor& var_logits,
                           at::IntArrayRef members, Index channel_groups, Index replicas,
                           double eps, bool relu, bool stored, std::array<bool, 4> wanted) {
  const Sizes s = sizes_of(x);
  const Layout layout = layout_for(x, members, channel_groups, replicas);
  const Index c = s.channels, k = layout.count, all = s.samples * c;
  const auto new_if = [&x](bool want, Index size) {
    return want ? new_table(x, {size}) : Tensor();
  };
  const Tensor dy = grad.to(x.scalar_type()).contiguous(layout_of(x)), gamma = as_table(weight, x);
  const Tensor dx = wanted[0] ? new_like(x) : Tensor(), masked = y ? new_like(x) : Tensor();
  const Tensor dweight = new_if(wanted[1], c), dbias = new_if(wanted[2], c);
  const Tensor dmean = new_if(wanted[3], k), dvar = new_if(wanted[3], k);
  // Scratch: the sums, the gradients of the combined statistics, the input gradient's b and c (two
  // tables each), and the averages of the second over BN's sets. It is kept between calls: memory
  // that is freed at each call goes back to the system, whose page faults take longer than the sums.
  thread_local std::vector<double> work;
  work.resize(std::max<size_t>(work.size(), 6 * all + 2 * replicas * c));
  by_type(x, [&]<typename T, typename S>() {
    const Tables<S> t(layout, table<S>(buffer, buffer_size(layout)));
    S *sums = reinterpret_cast<S*>(work.data()), *gradients = sums + 2 * all, *b = gradients + 2 * all;
    S *constant = b + all, *batch = constant + all;
    const T *from = pixels<T>(x, x), *g = pixels<T>(dy, x), *sign = pixels<T>(or_none(y), x);
    T* to = pixels<T>(masked, x);
    const bool recompute = relu && !sign;
    const S *center = recompute ? t.center : nullptr, *shift = recompute ? t.shift : nullptr;
    compute_gradient_sums(g, from, t.mean, sums, sums + all, center, recompute ? t.scale : nullptr,
                          shift, sign, to, s);
    mixture_gradient_sums(layout, t.mean, sums, table<S>(gamma, c), gradients, batch,
                          table<S>(dweight, c), table<S>(dbias, c), table<S>(dmean, k),
                          table<S>(dvar, k), s.threads);
    if (!wanted[0]) return;
    mixture_gradient(layout, t.mean, gradients, stored ? nullptr : batch, b, constant, s.threads);
    compute_input_gradient(sign ? to : g, from, t.mean, t.scale, b, constant, center, shift,
                           pixels<T>(dx, x), s);
  });
  return {dx, masked, dweight, dbias, dmean, dvar};
}

template <typename Function> auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

enum Input { kX, kResidual, kWeight, kBias, kMeanLogits, kVarLogits, kInputs = 16 };

struct Mixture : torch::autograd::Function<Mixture> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const MaybeTensor& residual,
                               const MaybeTensor& weight, const MaybeTensor& bias,
                               const MaybeTensor& mean_logits, const MaybeTensor& var_logits,
                               const MaybeTensor& running_mean, const MaybeTensor& running_var,
                               at::IntArrayRef members, Index channel_groups, Index replicas,
                               double eps, bool relu, bool stored, std::optional<double> momentum,
                               double unbias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    static const auto forward = find_operator<decltype(mixture)>("sn_imagenet::mixture");
    const auto [y, buffer] =
        forward.call(x, residual, weight, bias, mean_logits, var_logits, running_mean, running_var,
                     members, channel_groups, replicas, eps, relu, stored, momentum, unbias);
    // After a residual the ReLU's sign is read from the output.
    ctx->save_for_backward({x, relu && residual ? y : Tensor(), buffer, or_none(weight),
                            or_none(bias), or_none(mean_logits), or_none(var_logits)});
    ctx->mark_non_differentiable({buffer});
    ctx->set_materialize_grads(false);
    const Index present = 1 << kX | bool(residual) << kResidual | bool(weight) << kWeight |
                          bool(bias) << kBias | bool(mean_logits) << kMeanLogits |
                          bool(var_logits) << kVarLogits;
    std::vector<Index> numbers{channel_groups, replicas, relu, stored, present};
    numbers.insert(numbers.end(), members.begin(), members.end());
    ctx->saved_data["numbers"] = std::move(numbers);
    ctx->saved_data["eps"] = eps;
    return {y, buffer};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(kInputs);
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const auto optional = [&saved](int i) {
      return saved[i].defined() ? MaybeTensor(saved[i]) : std::nullopt;
    };
    const std::vector<Index> numbers = ctx->saved_data["numbers"].toIntVector();
    const bool relu = numbers[2], stored = numbers[3];
    // Only inputs that are present have an edge in the graph.
    const auto wanted = [ctx, present = numbers[4]](Input i) {
      const auto index = __builtin_popcountll(present & ((Index{1} << i) - 1));
      return (present >> i & 1) && ctx->needs_input_grad(index);
    };
    const bool logits = wanted(kMeanLogits) || wanted(kVarLogits);  // both are computed or neither
    // With create_graph=True cpp.py's differentiable implementation runs instead of this file's.
    std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
    if (!at::GradMode::is_enabled()) guard.emplace();
    static const auto backward =
        find_operator<decltype(mixture_backward)>("sn_imagenet::mixture_backward");
    const auto gradients =
        backward.call(grads[0], saved[0], optional(1), saved[2], optional(3), optional(4), optional(5),
                  optional(6), at::IntArrayRef(numbers).slice(5), numbers[0], numbers[1],
                  ctx->saved_data["eps"].toDouble(), relu, stored,
                  {wanted(kX), wanted(kWeight), wanted(kBias), logits});
    const auto set = [&](Input i, const Tensor& gradient) {
      if (wanted(i)) results[i] = gradient;
    };
    set(kX, std::get<0>(gradients));
    set(kResidual, saved[1].defined() ? std::get<1>(gradients) : grads[0]);
    set(kWeight, std::get<2>(gradients));
    set(kBias, std::get<3>(gradients));
    set(kMeanLogits, std::get<4>(gradients));
    set(kVarLogits, std::get<5>(gradients));
    return results;
  }
};

template <typename> struct Differentiable;
template <typename... Arguments> struct Differentiable<std::tuple<Tensor, Tensor>(Arguments...)> {
  static std::tuple<Tensor, Tensor> call(Arguments... arguments) {
    const auto outputs = Mixture::apply(arguments...);
    return {outputs[0], outputs[1]};
  }
};

}  // namespace

// Not done by a static object: a second copy of this package may have registered them already.
extern "C" void register_operators() {
  using torch::Library;
  const auto open = [](Library::Kind kind, std::optional<c10::DispatchKey> key) {
    return Library(kind, "sn_imagenet", key, __FILE__, __LINE__);
  };
  static Library definitions = open(Library::FRAGMENT, std::nullopt);
  definitions.def("moments(Tensor x) -> (Tensor mean, Tensor var)");
  definitions.def("affine(Tensor x, Tensor center, Tensor scale, Tensor shift, Tensor? residual, "
                  "bool relu) -> Tensor");
  definitions.def("gradient_sums(Tensor grad, Tensor x, Tensor mean, Tensor? center, "
                  "Tensor? scale, Tensor? shift, Tensor? y) -> (Tensor sums, Tensor masked)");
  definitions.def("input_gradient(Tensor grad, Tensor x, Tensor mean, Tensor a, Tensor b, "
                  "Tensor c, Tensor? center, Tensor? shift) -> Tensor");
  definitions.def("mixture(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, "
                  "Tensor? mean_logits, Tensor? var_logits, Tensor(a!)? running_mean, "
                  "Tensor(b!)? running_var, int[] members, int channel_groups, int replicas, "
                  "float eps, bool relu, bool stored, float? momentum, float unbias) "
                  "-> (Tensor y, Tensor tables)");
  definitions.def("mixture_backward(Tensor grad, Tensor x, Tensor? y, Tensor tables, "
                  "Tensor? weight, Tensor? bias, Tensor? mean_logits, Tensor? var_logits, "
                  "int[] members, int channel_groups, int replicas, float eps, bool relu, "
                  "bool stored, bool[4] wanted) "
                  "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  static Library cpu = open(Library::IMPL, c10::DispatchKey::CPU);
  cpu.impl("moments", TORCH_FN(moments));
  cpu.impl("affine", TORCH_FN(affine));
  cpu.impl("gradient_sums", TORCH_FN(gradient_sums));
  cpu.impl("input_gradient", TORCH_FN(input_gradient));
  cpu.impl("mixture", TORCH_FN(mixture));
  cpu.impl("mixture_backward", TORCH_FN(mixture_backward));
  static Library autograd = open(Library::IMPL, c10::DispatchKey::Autograd);
  autograd.impl("mixture", TORCH_FN(Differentiable<decltype(mixture)>::call));
}
