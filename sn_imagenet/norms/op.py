"""The one op under every normaliser: moments -> coefficients -> affine, + residual, ReLU.

Forward reads x twice and writes y once. Backward reads x and dy twice and writes dx once; the
small tables in between are differentiated by autograd. Only x and [N, C] tables are kept.

A fused ReLU costs no traffic and keeps no mask: backward recomputes its sign from x and the tables.
Behind a residual the sign would need the residual, too; there the output is kept in its place,
which costs the same traffic, and less memory in a residual network: the next convolution keeps the
output anyway, while the residual of a block with a projection is kept by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sn_imagenet.norms.backends import Affine, Backend, like, select_backend, statistics_dtype

Coefficients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(mean, var) -> (center, scale, shift), all [N, C]; differentiable."""


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
        backend: by name; None chooses by device and layout, and ``formula`` while torch.compile
            traces: plain differentiable PyTorch, which the compiler fuses by itself.
        relu: whether the output passes a ReLU.
        residual: of x's shape; added before the ReLU, in x's dtype.

    Returns:
        y, of x's shape, dtype and memory format. Differentiable once: a second derivative raises
        (``formula`` alone has one).
    """
    if backend == "formula" or (backend is None and torch.compiler.is_compiling()):
        return _formula(x, coefficients, relu, residual)
    x = dense(x)
    if residual is not None:
        residual = like(residual, x)
    chosen = select_backend(x, backend)
    how = (coefficients, chosen, relu, torch.is_grad_enabled())
    y: Tensor = _Normalize.apply(x, residual, how, *parameters)
    return y


def dense(x: Tensor) -> Tensor:
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


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        how: tuple[Coefficients, Backend, bool, bool],
        *parameters: Tensor,
    ) -> Tensor:
        coefficients, backend, relu, grad_enabled = how
        mean, var = backend.moments(x)
        if not (grad_enabled and any(ctx.needs_input_grad)):
            return backend.affine(x, Affine(*coefficients(mean, var)), relu, residual)
        # The tables' own small graph: from the moments and the parameters to the coefficients.
        # Walking it in backward is what makes a new method ten lines of [N, C] algebra.
        with torch.enable_grad():
            tables = coefficients(mean.requires_grad_(), var.requires_grad_())
        ctx.backend = backend
        ctx.relu = relu
        ctx.tables = (mean, var, *tables)
        ctx.parameters = parameters
        y = backend.affine(x, Affine(*(table.detach() for table in tables)), relu, residual)
        ctx.save_for_backward(x, y if relu and residual is not None else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        mean, var, center, scale, shift = ctx.tables
        area = x.shape[2] * x.shape[3]

        gate = Affine(center.detach(), scale.detach(), shift.detach()) if ctx.relu else None
        both, grad = ctx.backend.gradient_sums(grad, x, mean.detach(), gate if y is None else y)
        sum_grad, sum_grad_x = both.unbind()
        with torch.no_grad():
            table_grads = (
                -scale * sum_grad,
                sum_grad_x + (mean - center) * sum_grad,
                sum_grad,
            )
        flow = [
            (t, g)
            for t, g in zip((center, scale, shift), table_grads, strict=True)
            if t.requires_grad
        ]
        wanted = [p for p in ctx.parameters if p.requires_grad]
        outputs, output_grads = zip(*flow, strict=True)
        mean_grad, var_grad, *grads = torch.autograd.grad(
            outputs, (mean, var, *wanted), output_grads, allow_unused=True, retain_graph=True
        )

        want_x, want_residual = ctx.needs_input_grad[:2]
        dx = None
        if want_x:
            zero = torch.zeros_like(sum_grad)
            dx = ctx.backend.input_gradient(
                grad,
                x,
                mean.detach(),
                scale.detach(),
                zero if var_grad is None else var_grad * (2 / area),
                zero if mean_grad is None else mean_grad / area,
                gate if y is None else None,
            )
        by_parameter = iter(grads)
        parameter_grads = (next(by_parameter) if p.requires_grad else None for p in ctx.parameters)
        return dx, grad if want_residual else None, None, *parameter_grads
