"""The kernels in Triton, for CUDA (and, under Triton's interpreter, for tests on a CPU).

Launches per layer: one each for moments, affine, gradient sums and input gradient, so 2 forward
and 2 backward, and one more in each direction if the pixels of a sum are divided. A ReLU and a
residual add none. In between, the built-in methods combine their [N, C] tables with 2 launches
forward, which also update the running statistics, and 2 backward (closed_form/). If BN's statistics
span ranks, combining them takes 7 more small launches and 2 collectives.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from sn_imagenet.norms.kernels import triton_launch
from sn_imagenet.norms.kernels.tables import statistics_dtype
from sn_imagenet.norms.kernels.triton_tiles import Tile, Tuner, launch, power_of_two

JOIN_BLOCK = 32
TUNER = Tuner()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_for(x: Tensor) -> bool:
    """Whether Triton can run kernels where ``x`` is."""
    return (x.is_cuda or interpreted()) and _installed()


def supports(x: Tensor) -> bool:
    """Whether the kernels take ``x``."""
    return runs_for(x) and type(x) in (Tensor, torch.nn.Parameter) and x.is_floating_point()


class TritonBackend:
    """Both memory layouts; fp32, fp16, bf16 and fp64; statistics and sums in fp32 or fp64."""

    name = "triton"

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.new_empty(x.shape[:2], dtype=statistics_dtype(x.dtype))
        var = torch.empty_like(mean)
        self.moments_into(x, mean, var)
        return mean, var

    def moments_into(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        """Write the moments to ``mean`` and ``var``, both contiguous."""
        from sn_imagenet.norms.kernels import triton_kernels as kernels

        def run(tile: Tile) -> None:
            tiles = launch(x, tile)
            means, squares, split = mean, var, tiles.parts > 1
            if split:
                means, squares = mean.new_empty((2, tiles.parts, tiles.tables)).unbind()
            triton_launch.call(
                kernels.moments_kernel,
                tiles.reduction_programs,
                (x, means, squares),
                tiles.reduction,
                tiles.blocks,
            )
            if split:
                triton_launch.call(
                    kernels.join_moments_kernel,
                    -(-tiles.tables // JOIN_BLOCK),
                    (means, squares, mean, var),
                    (tiles.area, tiles.per_part, tiles.tables, tiles.parts),
                    {"PARTS": power_of_two(tiles.parts), "BLOCK": JOIN_BLOCK},
                )

        run(TUNER.tile("moments", x, run))

    def affine(
        self, x: Tensor, tables: Tensor, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        from sn_imagenet.norms.kernels import triton_kernels as kernels

        y = torch.empty_like(x)
        flags = {"RELU": relu, "RESIDUAL": residual is not None}
        added = x if residual is None else residual

        def run(tile: Tile) -> None:
            tiles = launch(x, tile)
            triton_launch.call(
                kernels.affine_kernel,
                tiles.elementwise_programs,
                (x, *tables.unbind(), added, y),
                tiles.elementwise,
                {**flags, **tiles.blocks},
            )

        run(TUNER.tile("affine", x, run))
        return y

    def gradient_sums(
        self, grad: Tensor, x: Tensor, mean: Tensor, tables: Tensor, relu: bool, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from sn_imagenet.norms.kernels import triton_kernels as kernels

        masked = grad if y is None else torch.empty_like(x)
        output, kind = (x, int(relu)) if y is None else (y, 2)

        def run(tile: Tile) -> Tensor:
            tiles = launch(x, tile.half())
            both = mean.new_empty((2, tiles.parts, tiles.tables))
            triton_launch.call(
                kernels.gradient_sums_kernel,
                tiles.reduction_programs,
                (grad, x, mean, *both.unbind(), *tables.unbind(), output, masked),
                tiles.reduction,
                {"RELU_MASK": kind, **tiles.blocks},
            )
            return both.squeeze(1) if tiles.parts == 1 else both.sum(dim=1)

        both = run(TUNER.tile("gradient_sums", x, run))
        return both.view(2, *x.shape[:2]), masked

    def input_gradient(
        self, grad: Tensor, x: Tensor, mean: Tensor, tables: Tensor, line: Tensor, relu: bool
    ) -> Tensor:
        from sn_imagenet.norms.kernels import triton_kernels as kernels

        dx = torch.empty_like(x)
        center, scale, shift = tables.unbind()

        def run(tile: Tile) -> None:
            tiles = launch(x, tile.half())
            triton_launch.call(
                kernels.input_gradient_kernel,
                tiles.elementwise_programs,
                (grad, x, mean, scale, *line.unbind(), center, shift, dx),
                tiles.elementwise,
                {"RELU_MASK": int(relu), **tiles.blocks},
            )

        run(TUNER.tile("input_gradient", x, run))
        return dx
