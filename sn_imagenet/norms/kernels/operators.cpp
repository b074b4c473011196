// The kernels over an activation, and a whole mixture layer, as operators of PyTorch, for CPUs.
//
// cpp.py compiles this file at first use. All arithmetic is in the headers. Each operator is its own
// fake implementation: for tensors on the meta device it allocates the results, of any symbolic
// shape, and computes nothing.

#include <ATen/EmptyTensor.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "combine.h"

namespace {

using at::Tensor;
using c10::SymInt;
using MaybeTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Calls body<T, S>(sizes) with the activation's type and that of its tables, unless x is fake.
template <typename Body> void by_type(const Tensor& x, Body body) {
  if (x.is_meta()) return;
  TORCH_CHECK(x.dim() == 4, "expected x [N, C, H, W], got ", x.sizes());
  const Index area = x.size(2) * x.size(3);
  // A 1x1 map has both layouts; as [N, C] it has long rows.
  const Sizes sizes{x.size(0), x.size(1), area, area == 1 || !x.is_contiguous(),
                    x.numel() > kEntriesForThreads ? at::get_num_threads() : 1};
  switch (x.scalar_type()) {
    case at::kFloat: return body.template operator()<float, float>(sizes);
    case at::kDouble: return body.template operator()<double, double>(sizes);
    case at::kBFloat16: return body.template operator()<c10::BFloat16, float>(sizes);
    default: TORCH_CHECK(false, "expected float32, float64 or bfloat16, got ", x.scalar_type());
  }
}

at::ScalarType table_type(const Tensor& x) { return at::toOpMathType(x.scalar_type()); }

Tensor new_table(const Tensor& x, c10::SymIntArrayRef shape) {
  if (x.is_meta()) return at::empty_symint(shape, x.options().dtype(table_type(x)));
  return at::detail::empty_cpu(C10_AS_INTARRAYREF_SLOW(shape), table_type(x));
}

Tensor new_like(const Tensor& x) {
  if (x.is_meta()) return at::empty_like(x);
  return at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type());
}

// A parameter or running statistics as a table for x: a copy if its dtype or layout is another.
MaybeTensor as_table(const MaybeTensor& tensor, const Tensor& x) {
  if (!tensor || (tensor->scalar_type() == table_type(x) && tensor->is_contiguous())) return tensor;
  return tensor->to(table_type(x)).contiguous();
}

// The memory of an activation, which has x's shape, dtype and layout; null if it is absent.
template <typename T> T* pixels(const MaybeTensor& tensor, const Tensor& x) {
  if (!tensor || !tensor->defined()) return nullptr;
  TORCH_CHECK(tensor->scalar_type() == x.scalar_type() && tensor->sizes() == x.sizes() &&
                  tensor->is_contiguous(x.suggest_memory_format()), "expected ", x.sizes(), " of ",
              x.scalar_type(), ", contiguous or channels_last as x");
  return static_cast<T*>(tensor->data_ptr());
}

// The memory of a contiguous table of `size` entries, of the type for x; null if it is absent.
template <typename S> S* table(const MaybeTensor& tensor, Index size) {
  if (!tensor || !tensor->defined()) return nullptr;
  TORCH_CHECK(tensor->numel() == size && tensor->is_contiguous(), "expected a contiguous table of ",
              size, " entries, got ", tensor->sizes());
  return tensor->data_ptr<S>();  // checks the type
}

// ---- the kernels; their tables are stacked, each [N, C] ----------------------------------------

std::tuple<Tensor, Tensor> moments(const Tensor& x) {
  const Tensor mean = new_table(x, {x.sym_size(0), x.sym_size(1)}), var = at::empty_like(mean);
  by_type(x, [&]<typename T, typename S>(const Sizes& s) {
    compute_moments(pixels<T>(x, x), mean.data_ptr<S>(), var.data_ptr<S>(), s);
  });
  return {mean, var};
}

Tensor affine(const Tensor& x, const Tensor& tables, bool relu, const MaybeTensor& residual) {
  const Tensor y = new_like(x);
  by_type(x, [&]<typename T, typename S>(const Sizes& s) {
    compute_affine(pixels<T>(x, x), table<S>(tables, 3 * s.tables()), pixels<T>(residual, x),
                   pixels<T>(y, x), relu, s);
  });
  return y;
}

// Returns the sums [2, N, C] and, if y is given, the masked gradient.
std::tuple<Tensor, Tensor> gradient_sums(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                         const Tensor& tables, bool relu, const MaybeTensor& y) {
  const Tensor sums = new_table(x, {2, x.sym_size(0), x.sym_size(1)});
  const Tensor masked = y ? new_like(x) : Tensor();
  by_type(x, [&]<typename T, typename S>(const Sizes& s) {
    compute_gradient_sums(pixels<T>(grad, x), pixels<T>(x, x), table<S>(mean, s.tables()),
                          sums.data_ptr<S>(), table<S>(tables, 3 * s.tables()), relu,
                          pixels<T>(y, x), pixels<T>(masked, x), s);
  });
  return {sums, masked};
}

Tensor input_gradient(const Tensor& grad, const Tensor& x, const Tensor& mean,
                      const Tensor& tables, const Tensor& line, bool relu) {
  const Tensor dx = new_like(x);
  by_type(x, [&]<typename T, typename S>(const Sizes& s) {
    compute_input_gradient(pixels<T>(grad, x), pixels<T>(x, x), table<S>(mean, s.tables()),
                           table<S>(tables, 3 * s.tables()), table<S>(line, 2 * s.tables()), relu,
                           pixels<T>(dx, x), s);
  });
  return dx;
}

// ---- a mixture layer ---------------------------------------------------------------------------

// The number of entries of the tables that backward needs; combine.h has their layout.
SymInt buffer_size(const Tensor& x, at::IntArrayRef members, Index channel_groups,
                   Index replicas) {
  const SymInt n = x.sym_size(0), c = x.sym_size(1);
  SymInt half = n * c * 3;
  for (const Index member : members)
    half += (member == kLayer ? n : member == kBatch ? c * replicas :
             member == kGroup ? n * channel_groups : SymInt(0)) + 1;
  return half * 2;
}

Layout layout_for(const Sizes& s, at::IntArrayRef members, Index channel_groups, Index replicas) {
  const Index count = static_cast<Index>(members.size());
  TORCH_CHECK(0 < count && count <= kMembers, "expected 1 to 4 members, got ", count);
  TORCH_CHECK_VALUE(s.samples % replicas == 0, "a batch of ", s.samples, " samples cannot be "
                    "divided evenly into ", replicas, " statistics groups; see set_replicas");
  TORCH_CHECK_VALUE(s.channels % channel_groups == 0, "num_groups=", channel_groups,
                    " does not divide ", s.channels, " channels");
  return {s, replicas, channel_groups, count, members.data()};
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
  const Tensor y = new_like(x);
  const Tensor tables = new_table(x, {buffer_size(x, members, channel_groups, replicas)});
  const MaybeTensor mean = as_table(running_mean, x), var = as_table(running_var, x);
  const MaybeTensor gamma = as_table(weight, x), beta = as_table(bias, x);
  const MaybeTensor mean_lambda = as_table(mean_logits, x), var_lambda = as_table(var_logits, x);
  by_type(x, [&]<typename T, typename S>(const Sizes& s) {
    const Tables<S> t(layout_for(s, members, channel_groups, replicas), tables.data_ptr<S>());
    S *m = table<S>(mean, s.channels), *v = table<S>(var, s.channels);
    compute_moments(pixels<T>(x, x), t.mean, t.var, s);
    combine(t, stored ? m : nullptr, stored ? v : nullptr, table<S>(mean_lambda, t.count),
            table<S>(var_lambda, t.count), table<S>(gamma, s.channels),
            table<S>(beta, s.channels), eps);
    compute_affine(pixels<T>(x, x), t.center, pixels<T>(residual, x), pixels<T>(y, x), relu, s);
    if (!momentum) return;
    const S* batch = t.mean + tables.numel() - 2 * replicas * s.channels;
    update_running(m, v, batch, batch + replicas * s.channels, *momentum, unbias, s.channels);
    for (const auto& [to, from] : {std::pair(*running_mean, *mean), std::pair(*running_var, *var)})
      to.is_same(from) ? to.unsafeGetTensorImpl()->bump_version() : void(to.copy_(from));
  });
  return {y, tables};
}

// Returns the gradients of x, of the residual if y is given (the output, from which the ReLU's sign
// is then read), weight, bias, mean_logits and var_logits; undefined where they are not wanted.
// The bias and the logits are arguments because the gradients depend on them.
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
Gradients mixture_backward(const Tensor& grad, const Tensor& x, const MaybeTensor& y,
                           const Tensor& tables, const MaybeTensor& weight, const MaybeTensor&,
                           const MaybeTensor&, const MaybeTensor&, at::IntArrayRef members,
                           Index channel_groups, Index replicas, bool relu, bool stored,
                           std::array<bool, 4> wanted) {
  const auto new_if = [&x](bool want, const SymInt& size) {
    return want ? new_table(x, {size}) : Tensor();
  };
  const Index k = members.size();
  const Tensor dx = wanted[0] ? new_like(x) : Tensor(), masked = y ? new_like(x) : Tensor();
  const Tensor dweight = new_if(wanted[1], x.sym_size(1)), dbias = new_if(wanted[2], x.sym_size(1));
  const Tensor dmean = new_if(wanted[3], k), dvar = new_if(wanted[3], k);
  const MaybeTensor gamma = as_table(weight, x);
  by_type(x, [&]<typename T, typename S>(const Sizes& s) {
    const Layout layout = layout_for(s, members, channel_groups, replicas);
    const Index size = buffer_size(x, members, channel_groups, replicas).expect_int();
    const Tensor dy = grad.to(x.scalar_type()).contiguous(x.suggest_memory_format());
    const Tensor gradients = new_table(x, {size});
    const Tables<S> t(layout, table<S>(tables, size)), g(layout, table<S>(gradients, size));
    const T *from = pixels<T>(x, x), *change = pixels<T>(dy, x), *sign = pixels<T>(y, x);
    compute_gradient_sums(change, from, t.mean, g.center, t.center, relu, sign,
                          pixels<T>(masked, x), s);
    combine_parameter_gradients(t, g, table<S>(gamma, s.channels), table<S>(dweight, s.channels),
                                table<S>(dbias, s.channels), table<S>(dmean, k),
                                table<S>(dvar, k));
    if (!wanted[0]) return;
    combine_input_gradient(t, g, stored);
    compute_input_gradient(sign ? pixels<T>(masked, x) : change, from, t.mean, t.center, g.shift,
                           relu && !sign, pixels<T>(dx, x), s);
  });
  return {dx, masked, dweight, dbias, dmean, dvar};
}

template <typename Function> auto find_operator(const char* name, Function*) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Function>();
}

struct Mixture : torch::autograd::Function<Mixture> {
  template <typename... Arguments>  // those of mixture
  static variable_list forward(AutogradContext* ctx, const Arguments&... arguments) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    static const auto forward = find_operator("sn_imagenet::mixture", mixture);
    const auto [y, tables] = forward.call(arguments...);
    const auto& [x, residual, weight, bias, mean_logits, var_logits, running_mean, running_var,
                 members, channel_groups, replicas, eps, relu, stored, momentum, unbias] =
        std::tie(arguments...);
    ctx->save_for_backward({x, relu && residual ? y : Tensor(), tables, weight.value_or(Tensor()),
                            bias.value_or(Tensor()), mean_logits.value_or(Tensor()),
                            var_logits.value_or(Tensor())});
    ctx->mark_non_differentiable({tables});
    ctx->set_materialize_grads(false);
    ctx->saved_data["options"] = c10::ivalue::Tuple::create(
        {members, channel_groups, replicas, relu, stored, residual.has_value()});
    return {y, tables};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list results(16);  // the arguments of forward
    if (!grads[0].defined()) return results;
    const auto saved = ctx->get_saved_variables();
    const auto optional = [&saved](int i) {
      return saved[i].defined() ? MaybeTensor(saved[i]) : std::nullopt;
    };
    const auto wanted = [&saved](int i) { return saved[i].defined() && saved[i].requires_grad(); };
    const auto& options = ctx->saved_data["options"].toTupleRef().elements();
    // With create_graph=True cpp.py's implementation runs, whose results raise if differentiated.
    std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
    if (!at::GradMode::is_enabled()) guard.emplace();
    static const auto backward = find_operator("sn_imagenet::mixture_backward", mixture_backward);
    Tensor masked;
    std::tie(results[0], masked, results[2], results[3], results[4], results[5]) = backward.call(
        grads[0], saved[0], optional(1), saved[2], optional(3), optional(4), optional(5),
        optional(6), options[0].toIntVector(), options[1].toInt(), options[2].toInt(),
        options[3].toBool(), options[4].toBool(),
        {wanted(0), wanted(3), wanted(4), wanted(5) || wanted(6)});
    if (options[5].toBool()) results[1] = saved[1].defined() ? masked : grads[0];
    return results;
  }
};

template <typename... Arguments> std::tuple<Tensor, Tensor> differentiable(Arguments... arguments) {
  const auto outputs = Mixture::apply(arguments...);
  return {outputs[0], outputs[1]};
}

}  // namespace

// Not done by a static object: a second copy of this package may have registered them already.
extern "C" void register_operators() {
  using torch::Library;
  static Library schemas(Library::FRAGMENT, "sn_imagenet", std::nullopt, __FILE__, __LINE__);
  static Library cpu(Library::IMPL, "sn_imagenet", c10::DispatchKey::CPU, __FILE__, __LINE__);
  static Library meta(Library::IMPL, "sn_imagenet", c10::DispatchKey::Meta, __FILE__, __LINE__);
  static Library autograd(Library::IMPL, "sn_imagenet", c10::DispatchKey::Autograd, __FILE__,
                          __LINE__);
  const auto add = [](const std::string& schema, auto* function) {
    const std::string name = schema.substr(0, schema.find('('));
    schemas.def(schema.c_str());
    cpu.impl(name.c_str(), function);
    meta.impl(name.c_str(), function);
  };
  add("moments(Tensor x) -> (Tensor mean, Tensor var)", moments);
  add("affine(Tensor x, Tensor tables, bool relu, Tensor? residual) -> Tensor", affine);
  add("gradient_sums(Tensor grad, Tensor x, Tensor mean, Tensor tables, bool relu, Tensor? y) "
      "-> (Tensor sums, Tensor masked)", gradient_sums);
  add("input_gradient(Tensor grad, Tensor x, Tensor mean, Tensor tables, Tensor line, bool relu) "
      "-> Tensor", input_gradient);
  add("mixture(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? mean_logits, "
      "Tensor? var_logits, Tensor(a!)? running_mean, Tensor(b!)? running_var, int[] members, "
      "int channel_groups, int replicas, float eps, bool relu, bool stored, float? momentum, "
      "float unbias) -> (Tensor y, Tensor tables)", mixture);
  add("mixture_backward(Tensor grad, Tensor x, Tensor? y, Tensor tables, Tensor? weight, "
      "Tensor? bias, Tensor? mean_logits, Tensor? var_logits, int[] members, int channel_groups, "
      "int replicas, bool relu, bool stored, bool[4] wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", mixture_backward);
  autograd.impl("mixture", static_cast<decltype(&mixture)>(differentiable));
}
