"""A mixture's tables on a GPU, computed by the kernels of triton_forward and triton_backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sn_imagenet.norms.closed_form.combiner import ClosedForm
from sn_imagenet.norms.kernels import TRITON, takes_tables, triton_launch
from sn_imagenet.norms.kernels.cpp import MEMBERS
from sn_imagenet.norms.moments import Statistics

# Entries of a table row per program, and samples of a column at a time: 2048 elements as in the
# other kernels, of two tables at once in backward. Not timed, since the tables are small.
_ROW_BLOCK = 256
_COLUMN_ROWS = 8


class _Sums(NamedTuple):
    """Sums of backward: over the pixels [2, N, C], then of these over each member's sets."""

    pixels: Tensor
    rows: Tensor
    groups: Tensor
    columns: Tensor
    want_logits: bool


class TritonTables(ClosedForm):
    """Two launches forward and two backward, in addition to those over the activation."""

    kernels = TRITON

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        layout = self.layout
        omega = list(layout.member_at)
        self._positions = {
            f"{name.upper()}_K": omega.index(name) if name in omega else -1 for name in MEMBERS
        }
        self._offsets = tuple(layout.member_at.get(name, 0) for name in ("ln", "gn", "bn"))
        self._blocks = -(-layout.channels // _ROW_BLOCK)

    def _combine_statistics(self) -> None:
        from sn_imagenet.norms.closed_form import triton_forward as kernels

        layout, positions = self.layout, self._positions
        rows, replicas, _, groups = layout.sizes
        programs = (
            rows * (positions["LN_K"] >= 0)
            + rows * groups * (positions["GN_K"] >= 0)
            + replicas * self._blocks * (positions["BN_K"] >= 0)
        )
        if not programs:
            return
        stored_mean, stored_var = self.stored or (self.buffer, self.buffer)
        triton_launch.call(
            kernels.combine_statistics_kernel,
            programs,
            (self.buffer, stored_mean, stored_var),
            (*layout.sizes, *self._offsets),
            {
                "LN_K": positions["LN_K"],
                "GN_K": positions["GN_K"],
                "STORED": self.stored is not None,
                "BLOCK": _ROW_BLOCK,
                "ROWS": _COLUMN_ROWS,
            },
        )

    def _combine_coefficients(self) -> None:
        from sn_imagenet.norms.closed_form import triton_forward as kernels

        layout = self.layout
        weight, bias, mean_logits, var_logits = self.parameters
        parameters = (mean_logits, var_logits, weight, bias)
        triton_launch.call(
            kernels.combine_coefficients_kernel,
            layout.rows * self._blocks,
            (self.buffer, *(_or_unused(parameter, self.buffer) for parameter in parameters)),
            (*layout.sizes, layout.weights, *self._offsets),
            {
                "COUNT": layout.count,
                **self._positions,
                "LOGITS": mean_logits is not None,
                "GAMMA": weight is not None,
                "BETA": bias is not None,
                "EPS": layout.eps,
                "BLOCK": _ROW_BLOCK,
            },
        )

    def _combine_gradient_sums(self, sums: Tensor, wanted: Sequence[bool]) -> tuple[_Sums, Tensor]:
        from sn_imagenet.norms.closed_form import triton_backward as kernels

        layout, gn = self.layout, self._positions["GN_K"]
        rows, replicas, channels, groups = layout.sizes
        new = self.buffer.new_empty
        scratch = _Sums(
            sums,
            new(4 * rows),
            new(2 * rows * groups),
            new((4, replicas, channels)),
            wanted[2] or wanted[3],
        )
        programs = rows + rows * groups * (gn >= 0) + replicas * self._blocks
        triton_launch.call(
            kernels.combine_gradient_sums_kernel,
            programs,
            self._inputs(scratch),
            layout.sizes,
            {
                "GN_K": gn,
                "ROWS": _COLUMN_ROWS,
                "GAMMA": self.parameters.weight is not None,
                "BLOCK": _ROW_BLOCK,
            },
        )
        return scratch, scratch.columns[:2]

    def _combine_gradient(
        self, scratch: _Sums, batch: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        from sn_imagenet.norms.closed_form import triton_backward as kernels

        layout = self.layout
        new = self.buffer.new_empty
        b, c = new((2, layout.rows, layout.channels)).unbind()
        logits = new((2, layout.count))
        triton_launch.call(
            kernels.combine_gradient_kernel,
            layout.rows * self._blocks + 1,
            (*self._inputs(scratch), batch, b, c, logits),
            (layout.area, *layout.sizes, layout.weights, *self._offsets),
            {
                "COUNT": layout.count,
                **self._positions,
                "STORED": self.stored is not None,
                "LOGITS": scratch.want_logits,
                "GAMMA": self.parameters.weight is not None,
                "BLOCK": _ROW_BLOCK,
            },
        )
        affine = scratch.columns[2:]
        affine = affine[:, 0] if layout.replicas == 1 else affine.sum(dim=1)
        return b, c, [*affine.unbind(), *logits.unbind()]

    def update_running(self, running: Statistics, momentum: float | Tensor, unbias: float) -> None:
        from sn_imagenet.norms.closed_form import triton_forward as kernels

        # Kernels take numbers as fp32.
        fp32 = self.buffer.dtype == torch.float32 and takes_tables(self.buffer, *running)
        if isinstance(momentum, Tensor) or not fp32:
            super().update_running(running, momentum, unbias)
            return
        layout = self.layout
        triton_launch.call(
            kernels.combine_running_kernel,
            self._blocks,
            (*running, self.buffer),
            (
                layout.member_at["bn"],
                layout.replicas * layout.channels,
                layout.channels,
                float(momentum),
                float(unbias),
            ),
            {"BLOCK": _ROW_BLOCK},
        )

    def _inputs(self, scratch: _Sums) -> tuple[Tensor, ...]:
        sums = (scratch.rows, scratch.groups, scratch.columns)
        weight = _or_unused(self.parameters.weight, self.buffer)
        return self.buffer, scratch.pixels, weight, *sums


def _or_unused(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """``tensor``, or a placeholder that the kernel does not read."""
    return unused if tensor is None else tensor
