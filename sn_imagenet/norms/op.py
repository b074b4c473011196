"""The one op under every normaliser: moments -> coefficients -> affine.

Forward reads x twice and writes y once. Backward reads x and dy twice and writes dx once; the
small tables in between are differentiated by autograd. Only x and [N, C] tables are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sn_imagenet.norms.backends import Backend, select_backend, statistics_dtype

Coefficients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(mean, var) -> (center, scale, shift), all [N, C]; differentiable."""


def normalize(
    x: Tensor,
    coefficients: Coefficients,
    parameters: Sequence[Tensor],
    backend: str | None = None,
) -> Tensor:
    """y = (x - center) * scale + shift, with the tables computed from x's moments.

    Args:
        x: [N, C, H, W], any floating dtype.
        coefficients: makes the three [N, C] tables from x's mean and biased variance over (H, W).
        parameters: the tensors inside ``coefficients`` that want a gradient.
        backend: by name; None chooses by device and layout, and ``formula`` while torch.compile
            traces: plain differentiable PyTorch, which the compiler fuses by itself.

    Returns:
        y, of x's shape, dtype and memory format. Differentiable once: a second derivative raises
        (``formula`` alone has one).
    """
    if backend == "formula" or (backend is None and torch.compiler.is_compiling()):
        return _formula(x, coefficients)
    x = dense(x)
    chosen = select_backend(x, backend)
    y: Tensor = _Normalize.apply(x, coefficients, chosen, torch.is_grad_enabled(), *parameters)
    return y


def dense(x: Tensor) -> Tensor:
    """``x`` itself where it is contiguous or channels_last, a contiguous copy of it elsewhere."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _formula(x: Tensor, coefficients: Coefficients) -> Tensor:
    values = x.to(statistics_dtype(x.dtype))
    var, mean = torch.var_mean(values, dim=(2, 3), correction=0)
    center, scale, shift = (table[:, :, None, None] for table in coefficients(mean, var))
    return ((values - center) * scale + shift).to(x.dtype)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        coefficients: Coefficients,
        backend: Backend,
        grad_enabled: bool,
        *parameters: Tensor,
    ) -> Tensor:
        mean, var = backend.moments(x)
        if not (grad_enabled and any(ctx.needs_input_grad)):
            return backend.affine(x, *coefficients(mean, var))
        # The tables' own small graph: from the moments and the parameters to the coefficients.
        # Walking it in backward is what makes a new method ten lines of [N, C] algebra.
        with torch.enable_grad():
            tables = coefficients(mean.requires_grad_(), var.requires_grad_())
        ctx.backend = backend
        ctx.tables = (mean, var, *tables)
        ctx.parameters = parameters
        ctx.save_for_backward(x)
        return backend.affine(x, *(table.detach() for table in tables))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        mean, var, center, scale, shift = ctx.tables
        area = x.shape[2] * x.shape[3]

        sum_grad, sum_grad_x = ctx.backend.gradient_sums(grad, x, mean.detach())
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

        dx = None
        if ctx.needs_input_grad[0]:
            zero = torch.zeros_like(sum_grad)
            dx = ctx.backend.input_gradient(
                grad,
                x,
                mean.detach(),
                scale.detach(),
                zero if var_grad is None else var_grad * (2 / area),
                zero if mean_grad is None else mean_grad / area,
            )
        by_parameter = iter(grads)
        parameter_grads = (next(by_parameter) if p.requires_grad else None for p in ctx.parameters)
        return dx, None, None, None, *parameter_grads
