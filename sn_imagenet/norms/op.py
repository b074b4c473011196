"""The one op under every normalizer: moments -> tables -> affine, + residual, ReLU.

Forward reads x twice and writes y once. Backward reads x and dy twice and writes dx once. Between
these passes a :class:`Combiner` makes small [N, C] tables. Only x and such tables are kept.

A fused ReLU costs no traffic and keeps no mask: backward recomputes its sign from x and the tables.
Behind a residual the sign would need the residual, too; there the output is kept in its place,
which costs the same traffic, and less memory in a residual network: the next convolution keeps the
output anyway, while the residual of a block with a projection is kept by nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from sn_imagenet.norms.kernels import (
    Affine,
    Backend,
    select_backend,
    statistics_dtype,
    with_layout_of,
)

Coefficients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(mean, var) -> (center, scale, shift), all [N, C]; differentiable."""

Gradients = tuple[Tensor, Tensor, Sequence[Tensor | None]]
"""b and c of the input gradient a * dy + b * (x - mean) + c, each [N, C]; the parameters'."""


class Combiner(ABC):
    """One forward pass's tables, from the moments to the affine map, and their derivative; and the
    op over them, which a subclass may do as a whole.
    """

    affine: Affine

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """x's means over (H, W), [N, C], once :meth:`forward` is done."""

    @abstractmethod
    def forward(self, x: Tensor, kernels: Backend, differentiable: bool) -> Affine:
        """The affine map's tables for ``x``."""

    @abstractmethod
    def read_in_backward(self) -> tuple[Tensor, ...]:
        """Parameters that must not change before :meth:`backward`."""

    @abstractmethod
    def backward(self, sums: Tensor, wanted: Sequence[bool]) -> Gradients:
        """From the sums over (H, W) of dy and of dy * (x - mean), [2, N, C]; ``wanted`` says which
        parameters need a gradient.
        """

    def apply(
        self,
        x: Tensor,
        residual: Tensor | None,
        kernels: Backend,
        relu: bool,
        parameters: Sequence[Tensor | None],
    ) -> Tensor:
        """The op over a :func:`as_dense` ``x`` and a residual of its layout, to be differentiated.

        ``parameters`` are those whose gradients :meth:`backward` returns, in its order.
        """
        if torch.is_grad_enabled():
            y: Tensor = _Normalize.apply(x, residual, kernels, self, relu, *parameters)
            return y
        return self.output(x, residual, kernels, relu, False)

    def output(
        self,
        x: Tensor,
        residual: Tensor | None,
        kernels: Backend,
        relu: bool,
        differentiable: bool,
    ) -> Tensor:
        """y, + residual, its ReLU."""
        self.affine = self.forward(x, kernels, differentiable)
        return kernels.affine(x, self.affine, relu, residual)

    def gradients(
        self,
        grad: Tensor,
        x: Tensor,
        y: Tensor | None,
        kernels: Backend,
        relu: bool,
        want_x: bool,
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor, Sequence[Tensor | None]]:
        """The gradients of x and of the residual, and those of the parameters that are wanted.

        ``y`` is the output where the ReLU's sign is to be read from it.
        """
        relu_mask = self.affine if relu else None
        sums, grad = kernels.gradient_sums(grad, x, self.mean, relu_mask if y is None else y)
        b, c, parameters = self.backward(sums, wanted)
        dx = None
        if want_x:
            behind = relu_mask if y is None else None
            dx = kernels.input_gradient(grad, x, self.mean, self.affine.scale, b, c, behind)
        return dx, grad, parameters


def normalize(
    x: Tensor,
    coefficients: Coefficients,
    parameters: Sequence[Tensor],
    backend: str | None = None,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """y = (x - center) * scale + shift, with the tables computed from x's moments.

    With ``residual`` y + residual, with ``relu`` the ReLU of that: NaN comes through, the gradient
    at 0 is 0.

    Args:
        x: [N, C, H, W], any floating dtype.
        coefficients: makes the three [N, C] tables from x's mean and biased variance over (H, W).
        parameters: the tensors inside ``coefficients`` that want a gradient.
        backend: by name; None chooses by device and layout. ``formula`` is plain differentiable
            PyTorch, and is taken wherever :func:`needs_formula`.
        relu: whether the output passes a ReLU.
        residual: of x's shape; added before the ReLU, in x's dtype.

    Returns:
        y, of x's shape, dtype and memory format. Differentiable once: a second derivative raises
        (``formula`` alone has one).
    """
    if backend == "formula" or needs_formula():
        return _formula(x, coefficients, relu, residual)
    x = as_dense(x)
    kernels = select_backend(x, backend)
    return apply(x, residual, kernels, AutogradCombiner(coefficients, parameters), relu, parameters)


def apply(
    x: Tensor,
    residual: Tensor | None,
    kernels: Backend,
    combiner: Combiner,
    relu: bool,
    parameters: Sequence[Tensor | None],
) -> Tensor:
    """:meth:`Pooling.apply`, with a ``residual`` of any layout and dtype."""
    if residual is not None:
        residual = with_layout_of(residual, x)
    return combiner.apply(x, residual, kernels, relu, parameters)


def needs_formula() -> bool:
    """Whether PyTorch's own operators are recorded or transformed here, which would miss the
    passes: by torch.compile (which fuses the formula by itself), jit.trace, make_fx, torch.func's
    transforms or forward-mode differentiation.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or forward_ad._current_level >= 0
    )


def as_dense(x: Tensor) -> Tensor:
    """``x`` itself where it is contiguous or channels_last, a contiguous copy of it elsewhere."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _formula(x: Tensor, coefficients: Coefficients, relu: bool, residual: Tensor | None) -> Tensor:
    values = x.to(statistics_dtype(x.dtype))
    var, mean = torch.var_mean(values, dim=(2, 3), correction=0)
    center, scale, shift = (table[:, :, None, None] for table in coefficients(mean, var))
    y = (values - center) * scale + shift
    if residual is not None:
        y = y + residual
    return (torch.relu(y) if relu else y).to(x.dtype)


class AutogradCombiner(Combiner):
    """Any pooling, differentiated by autograd: the tables' own small graph, from the moments and
    the parameters to the coefficients. Walking it in backward is what makes a new method ten lines
    of [N, C] algebra.
    """

    def __init__(self, coefficients: Coefficients, parameters: Sequence[Tensor]) -> None:
        self.coefficients = coefficients
        self.parameters = parameters

    @property
    def mean(self) -> Tensor:
        return self._mean

    def forward(self, x: Tensor, kernels: Backend, differentiable: bool) -> Affine:
        self._mean, var = kernels.moments(x)
        if not differentiable:
            return Affine(*self.coefficients(self.mean, var))
        self.pixels = x.shape[2] * x.shape[3]
        self.leaves = self.mean.detach().requires_grad_(), var.requires_grad_()
        with torch.enable_grad():
            self.tables = self.coefficients(*self.leaves)
        return Affine(*(table.detach() for table in self.tables))

    def read_in_backward(self) -> tuple[Tensor, ...]:
        return ()  # autograd watches its own

    @torch.no_grad()
    def backward(self, sums: Tensor, wanted: Sequence[bool]) -> Gradients:
        center, scale, _ = self.tables
        sum_grad, sum_grad_x = sums.unbind()
        table_grads = (
            -scale * sum_grad,
            sum_grad_x + (self.mean - center) * sum_grad,
            sum_grad,
        )
        flow = [(t, g) for t, g in zip(self.tables, table_grads, strict=True) if t.requires_grad]
        chosen = [p for p, want in zip(self.parameters, wanted, strict=True) if want]
        mean_grad, var_grad, *grads = (
            torch.autograd.grad(
                [t for t, _ in flow],
                (*self.leaves, *chosen),
                [g for _, g in flow],
                allow_unused=True,
                retain_graph=True,
            )
            if flow  # nothing to differentiate in a frozen layer of stored statistics
            else [None] * (2 + len(chosen))
        )
        zero = torch.zeros_like(sum_grad)
        by_parameter = iter(grads)
        return (
            zero if var_grad is None else var_grad * (2 / self.pixels),
            zero if mean_grad is None else mean_grad / self.pixels,
            [next(by_parameter) if want else None for want in wanted],
        )


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        kernels: Backend,
        combiner: Combiner,
        relu: bool,
        *parameters: Tensor | None,
    ) -> Tensor:
        y = combiner.output(x, residual, kernels, relu, any(ctx.needs_input_grad))
        ctx.kernels, ctx.combiner, ctx.relu = kernels, combiner, relu
        ctx.save_for_backward(
            x, y if relu and residual is not None else None, *combiner.read_in_backward()
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *_ = ctx.saved_tensors
        want_x, want_residual, _, _, _, *wanted = ctx.needs_input_grad
        dx, grad, parameters = ctx.combiner.gradients(
            grad, x, y, ctx.kernels, ctx.relu, want_x, wanted
        )
        return dx, grad if want_residual else None, None, None, None, *parameters
