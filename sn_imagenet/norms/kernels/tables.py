"""What the passes share: the tables' dtype, their names, a ReLU on the gradient's way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """The map (x - center) * scale + shift; each table is [N, C]."""

    center: Tensor
    scale: Tensor
    shift: Tensor


ReluMask = Affine | Tensor | None
"""The ReLU between the incoming gradient and the affine map: none; that of the map's own value,
whose sign is recomputed from x; or that whose output is the tensor."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the tables of an activation of ``dtype``."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def with_layout_of(tensor: Tensor, x: Tensor) -> Tensor:
    """``tensor``, of x's shape, in x's dtype and memory layout."""
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return tensor.to(x.dtype).contiguous(memory_format=layout)
