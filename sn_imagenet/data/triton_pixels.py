"""Normalization of a batch of uint8 images on a GPU, in one pass over the pixels."""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sn_imagenet.norms.kernels import triton_launch

BLOCK = 4096


@triton.jit
def normalize_kernel(
    stored, shifts, mean, std, out, values, values_per_image, SCALE: tl.constexpr,
    SHIFTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(stored * scale + shift - mean) / std; the channels of a pixel are adjacent in memory."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < values
    channel = at % 3
    pixels = tl.load(stored + at, mask=mask, other=0).to(tl.float32) * SCALE
    if SHIFTS:
        pixels += tl.load(shifts + at // values_per_image * 3 + channel, mask=mask, other=0.0)
    pixels -= tl.load(mean + channel)
    tl.store(out + at, tl.div_rn(pixels, tl.load(std + channel)), mask=mask)


def normalize(
    stored: Tensor, shifts: Tensor | None, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """Each operation rounds its result, so the numbers are those of a sequence of operators; the
    last rounds to ``dtype``.

    Args:
        stored: uint8 [n, 3, H, W], channels_last; ``shifts`` [n, 3], ``mean``, ``std`` [3]: float32
            on its device.
    """
    out = torch.empty_like(stored, dtype=dtype)
    triton_launch.call(
        normalize_kernel,
        -(-stored.numel() // BLOCK),
        (stored, stored if shifts is None else shifts, mean, std, out),
        (stored.numel(), stored.numel() // len(stored)),
        {"SCALE": 1 / 255, "SHIFTS": shifts is not None, "BLOCK": BLOCK, "enable_fp_fusion": False},
    )
    return out
