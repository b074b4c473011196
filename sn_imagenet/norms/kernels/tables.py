"""What the kernels share: the affine map's tables, their dtype, the ReLU mask, the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """The map (x - center) * scale + shift; each table is [N, C]."""

    center: Tensor
    scale: Tensor
    shift: Tensor


Coefficients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(mean, biased var) -> (center, scale, shift), all [N, C]; differentiable."""

ReluMask = Affine | Tensor | None
"""The ReLU between the incoming gradient and the affine map: None for no ReLU; Affine for a ReLU of
the map's value, whose sign is recomputed from x; a tensor for a ReLU whose output it is."""


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
