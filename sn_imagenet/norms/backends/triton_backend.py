"""The passes as Triton kernels, for CUDA (and, under Triton's interpreter, for tests on a CPU).

Launches per layer: one each for moments, affine, gradient sums and input gradient, so 2 forward
and 2 backward, and one more in either direction where the pixels are split. In between, the
built-in methods pool their [N, C] tables with 2 launches forward and 2 backward
(triton_pooling.py), so 8 in all, up to 10 with splits, and 4 small ones for running statistics;
any other method takes PyTorch's own small operators, some dozens of launches.

Block sizes are reasoned, not searched for, so that no first step waits and every run of a shape
adds up in the same order. A tile holds 2048 elements, 16 for each of 128 threads: two 16-byte
loads of bf16, or four of fp32, in flight per thread. Contiguous maps are read along the pixels,
up to 1024 of them at a time; channels_last ones along up to 64 channels, 128 bytes of bf16. Where
samples times blocks of channels give too few programs for the chip (the first layers have 64
channels: a program per channel would leave most of 132 multiprocessors idle), the pixels are split
as well and the shares joined by a second, tiny kernel.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from sn_imagenet.norms.backends.native import statistics_dtype

TILE = 2048
LONGEST_ROW = 1024
MOST_CHANNELS = 64
# Four per multiprocessor of an H100 or H200 hide the latency of memory.
ENOUGH_PROGRAMS = 4 * 132
MOST_SPLITS = 64
JOIN_BLOCK = 128


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def supports(x: Tensor) -> bool:
    """Whether the kernels take ``x``."""
    return (
        (x.is_cuda or interpreted())
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.is_floating_point()
        and _installed()
    )


class _Launch:
    """The tiles of one activation: sizes, strides and grids."""

    def __init__(self, x: Tensor) -> None:
        n, self.channels, height, width = x.shape
        self.area = height * width
        self.tables = n * self.channels
        # A 1x1 map is both layouts; as channels_last its rows are long.
        if x.is_contiguous() and self.area > 1:
            self.strides = (self.channels * self.area, self.area, 1)
            self.bp = min(_power_of_two(self.area), LONGEST_ROW)
            self.bc = min(_power_of_two(self.channels), TILE // self.bp)
        else:
            self.strides = (self.channels * self.area, 1, self.channels)
            self.bc = min(_power_of_two(self.channels), MOST_CHANNELS)
            self.bp = min(_power_of_two(self.area), TILE // self.bc)
        self.blocks_c = -(-self.channels // self.bc)
        self.programs = n * self.blocks_c
        blocks_p = -(-self.area // self.bp)
        wanted = min(-(-ENOUGH_PROGRAMS // self.programs), blocks_p, MOST_SPLITS)
        # Whole tiles to each split, and no split without pixels.
        self.per_split = -(-blocks_p // wanted) * self.bp
        self.splits = -(-self.area // self.per_split)
        self.reduction_grid = (self.programs, self.splits)
        self.elementwise_grid = (self.programs, blocks_p)
        self.blocks = {"BC": self.bc, "BP": self.bp}


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _like(grad: Tensor, x: Tensor) -> Tensor:
    if x.is_contiguous():
        return grad.contiguous()
    return grad.contiguous(memory_format=torch.channels_last)


class TritonBackend:
    """Both memory layouts; fp32, fp16, bf16 and fp64; statistics and sums in fp32 or fp64."""

    name = "triton"

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.new_empty(x.shape[:2], dtype=statistics_dtype(x.dtype))
        var = torch.empty_like(mean)
        self.moments_into(x, mean, var)
        return mean, var

    def moments_into(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        """Write them to ``mean`` and ``var``, contiguous, of N * C entries."""
        from sn_imagenet.norms.backends import triton_kernels as kernels

        launch = _Launch(x)
        means, squares = mean, var
        if launch.splits > 1:
            means, squares = mean.new_empty((2, launch.splits, launch.tables)).unbind()
        with on_device(x):
            kernels.moments_kernel[launch.reduction_grid](
                x,
                means,
                squares,
                launch.channels,
                launch.area,
                launch.per_split,
                launch.tables,
                launch.blocks_c,
                *launch.strides,
                **launch.blocks,
            )
            if launch.splits > 1:
                kernels.join_moments_kernel[(-(-launch.tables // JOIN_BLOCK),)](
                    means,
                    squares,
                    mean,
                    var,
                    launch.area,
                    launch.per_split,
                    launch.tables,
                    launch.splits,
                    BLOCK=JOIN_BLOCK,
                )

    def affine(self, x: Tensor, center: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        from sn_imagenet.norms.backends import triton_kernels as kernels

        launch, y = _Launch(x), torch.empty_like(x)
        with on_device(x):
            kernels.affine_kernel[launch.elementwise_grid](
                x,
                center.contiguous(),
                scale.contiguous(),
                shift.contiguous(),
                y,
                launch.channels,
                launch.area,
                launch.blocks_c,
                *launch.strides,
                **launch.blocks,
            )
        return y

    def gradient_sums(self, grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        sums, products = self.both_gradient_sums(grad, x, mean).view(2, *x.shape[:2]).unbind()
        return sums, products

    def both_gradient_sums(self, grad: Tensor, x: Tensor, mean: Tensor) -> Tensor:
        """The sums of :meth:`gradient_sums` as one contiguous tensor [2, N * C]."""
        from sn_imagenet.norms.backends import triton_kernels as kernels

        launch = _Launch(x)
        both = mean.new_empty((2, launch.splits, launch.tables))
        with on_device(x):
            kernels.gradient_sums_kernel[launch.reduction_grid](
                _like(grad, x),
                x,
                mean,
                both[0],
                both[1],
                launch.channels,
                launch.area,
                launch.per_split,
                launch.tables,
                launch.blocks_c,
                *launch.strides,
                **launch.blocks,
            )
        return both.squeeze(1) if launch.splits == 1 else both.sum(dim=1)

    def input_gradient(
        self, grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
    ) -> Tensor:
        from sn_imagenet.norms.backends import triton_kernels as kernels

        launch, dx = _Launch(x), torch.empty_like(x)
        with on_device(x):
            kernels.input_gradient_kernel[launch.elementwise_grid](
                _like(grad, x),
                x,
                mean.contiguous(),
                a.contiguous(),
                b.contiguous(),
                c.contiguous(),
                dx,
                launch.channels,
                launch.area,
                launch.blocks_c,
                *launch.strides,
                **launch.blocks,
            )
        return dx
