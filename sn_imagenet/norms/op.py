"""The operation behind every normalization layer: moments -> tables -> affine, + residual, ReLU.

Forward reads x twice and writes y once. Backward reads x and dy twice and writes dx once. In
between a :class:`Combiner` computes small [N, C] tables. Only x and such tables are saved.

A fused ReLU causes no memory traffic and saves no mask: backward recomputes its sign from x and the
tables. After a residual the sign also depends on the residual. Then the output is saved instead,
with the same traffic as the residual but less memory in a residual network: the next convolution
saves the output anyway, while nothing else saves the residual of a block with a projection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.norms.kernels import (
    Backend,
    Coefficients,
    NotDifferentiable,
    as_dense,
    formula,
    kernels_for,
    with_layout_of,
)


class Combiner(ABC):
    """The tables of one forward pass, from the moments to the affine map, and their derivative.

    Attributes:
        inputs: the tensors whose gradients :meth:`backward` returns, in this order.
        saved: parameters that must not change before :meth:`backward`.
        mean: x's means over (H, W), [N, C], after :meth:`forward`.
    """

    inputs: Sequence[Tensor | None]
    saved: tuple[Tensor, ...] = ()
    mean: Tensor

    @abstractmethod
    def forward(self, x: Tensor, kernels: Backend, differentiable: bool) -> Tensor:
        """The affine map's tables; :meth:`backward` follows only if ``differentiable``."""

    @abstractmethod
    def backward(
        self, sums: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The ``line`` of the input gradient (see Backend), and the gradients of the parameters
        that are ``wanted``, from the result of Backend.gradient_sums.
        """


def normalize(
    x: Tensor,
    coefficients: Coefficients,
    parameters: Sequence[Tensor],
    backend: str | None = None,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """y = (x - center) * scale + shift, with tables computed from x's moments.

    ``residual`` is added to y, and ``relu`` then applies a ReLU, which propagates NaN and has the
    gradient 0 at 0.

    Args:
        x: [N, C, H, W], any floating dtype.
        coefficients: computes the three [N, C] tables from x's mean and variance over (H, W).
        parameters: the tensors in ``coefficients`` that need a gradient.
        backend: a name, or None to choose by device and layout. ``formula`` is plain differentiable
            PyTorch, and is always used if it is being recorded or transformed (see
            :func:`~sn_imagenet.norms.kernels.kernels_for`).
        relu: whether the output goes through a ReLU.
        residual: of x's shape; added before the ReLU, in x's dtype.

    Returns:
        y, of x's shape, dtype and memory format. With ``formula`` only it can be differentiated
        twice; otherwise that raises a RuntimeError.
    """
    kernels = kernels_for(x, backend)
    if kernels is None:
        return formula(x, coefficients, relu, residual)
    combiner = AutogradCombiner(coefficients, parameters)
    return normalize_with(combiner, as_dense(x), residual, kernels, relu)


def normalize_with(
    combiner: Combiner, x: Tensor, residual: Tensor | None, kernels: Backend, relu: bool
) -> Tensor:
    """:func:`normalize` with the tables of ``combiner``; ``x`` is from :func:`as_dense`."""
    if residual is not None:
        residual = with_layout_of(residual, x)
    differentiable = torch.is_grad_enabled()
    y: Tensor = _Normalize.apply(
        x, residual, kernels, combiner, relu, differentiable, *combiner.inputs
    )
    return y


class AutogradCombiner(Combiner):
    """Any way of combining moments. Autograd records a small graph of [N, C] tables, from moments
    and parameters to coefficients, so that a new method takes only ten lines of [N, C] algebra.
    """

    inputs: Sequence[Tensor]

    def __init__(self, coefficients: Coefficients, parameters: Sequence[Tensor]) -> None:
        self.coefficients = coefficients
        self.inputs = parameters

    def forward(self, x: Tensor, kernels: Backend, differentiable: bool) -> Tensor:
        self.mean, var = kernels.moments(x)
        if not differentiable:
            return torch.stack(self.coefficients(self.mean, var))
        self.pixels = x.shape[2] * x.shape[3]
        self.leaves = self.mean.detach().requires_grad_(), var.requires_grad_()
        with torch.enable_grad():
            self.tables = torch.stack(self.coefficients(*self.leaves))
        return self.tables.detach()

    @torch.no_grad()
    def backward(
        self, sums: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        center, scale, _ = self.tables
        sum_grad, sum_grad_x = sums
        table_grads = (-scale * sum_grad, sum_grad_x + (self.mean - center) * sum_grad, sum_grad)
        chosen = [p for p, want in zip(self.inputs, wanted, strict=True) if want]
        grads: Sequence[Tensor | None] = [None] * (2 + len(chosen))
        if self.tables.requires_grad:  # not of a frozen layer with stored statistics
            grads = torch.autograd.grad(
                self.tables,
                (*self.leaves, *chosen),
                torch.stack(table_grads),
                allow_unused=True,
                retain_graph=True,
            )
        zero = torch.zeros_like(sum_grad)
        mean_grad, var_grad = (zero if grad is None else grad for grad in grads[:2])
        line = torch.stack((var_grad * (2 / self.pixels), mean_grad / self.pixels))
        by_parameter = iter(grads[2:])
        return line, [next(by_parameter) if want else None for want in wanted]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        kernels: Backend,
        combiner: Combiner,
        relu: bool,
        differentiable: bool,
        *parameters: Tensor | None,
    ) -> Tensor:
        needed = differentiable and any(ctx.needs_input_grad)
        ctx.tables = combiner.forward(x, kernels, needed)
        y = kernels.affine(x, ctx.tables, relu, residual)
        ctx.kernels, ctx.combiner = kernels, combiner
        ctx.recompute = relu and residual is None
        saved_y = y if relu and residual is not None else None
        ctx.save_for_backward(x, saved_y, *combiner.saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        functorch = torch._C._functorch
        if functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad):
            raise RuntimeError(
                "this normalization layer takes one gradient at a time, and is_grads_batched=True "
                'gives several: set its backend = "formula"'
            )
        with torch.no_grad():
            results = _Normalize.gradients(ctx, grad)
        if torch.is_grad_enabled():
            inputs = (grad, ctx.saved_tensors[0], *ctx.combiner.inputs)
            return NotDifferentiable.apply(results, *inputs)
        return results

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *_ = ctx.saved_tensors
        kernels, mean = ctx.kernels, ctx.combiner.mean
        want_x, want_residual, _, _, _, _, *wanted = ctx.needs_input_grad
        grad = with_layout_of(grad, x)
        sums, grad = kernels.gradient_sums(grad, x, mean, ctx.tables, ctx.recompute, y)
        line, parameters = ctx.combiner.backward(sums, wanted)
        dx = None
        if want_x:
            dx = kernels.input_gradient(grad, x, mean, ctx.tables, line, ctx.recompute)
        return dx, grad if want_residual else None, None, None, None, None, *parameters
