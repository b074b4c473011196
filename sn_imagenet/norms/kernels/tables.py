"""What the kernels share: the dtype and layout of tensors, the formula, and single derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

Coefficients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(mean, biased var) -> (center, scale, shift), all [N, C]; differentiable."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the tables for an activation of ``dtype``."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def with_layout_of(tensor: Tensor, x: Tensor) -> Tensor:
    """``tensor``, which has x's shape, in x's dtype and memory layout."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return tensor.to(x.dtype).contiguous(memory_format=layout)


def formula(x: Tensor, coefficients: Coefficients, relu: bool, residual: Tensor | None) -> Tensor:
    """The operation in plain differentiable PyTorch; see :func:`~sn_imagenet.norms.normalize`."""
    values = x.to(statistics_dtype(x.dtype))
    var, mean = torch.var_mean(values, dim=(2, 3), correction=0)
    center, scale, shift = (table[:, :, None, None] for table in coefficients(mean, var))
    y = (values - center) * scale + shift
    if residual is not None:
        y = y + residual
    return (torch.relu(y) if relu else y).to(x.dtype)


class NotDifferentiable(torch.autograd.Function):
    """Gradients with a graph that leads to the inputs and raises."""

    @staticmethod
    def forward(
        ctx: Any, gradients: Sequence[Tensor | None], *inputs: Any
    ) -> tuple[Tensor | None, ...]:
        return tuple(t if t is None else t.view_as(t) for t in gradients)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            "the gradient of this normalization layer cannot be differentiated: set its "
            'backend = "formula"'
        )
