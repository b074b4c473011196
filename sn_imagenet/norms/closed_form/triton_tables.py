"""A mixture's tables in closed form on a GPU: forward Eq. (3), backward Eqs. (7)-(14).

The kernels are those of triton_forward and triton_backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sn_imagenet.norms.kernels import TRITON, Backend, statistics_dtype, triton_launch
from sn_imagenet.norms.kernels.cpp import MEMBERS
from sn_imagenet.norms.moments import Statistics, check_divides, combine_ranks
from sn_imagenet.norms.op import Combiner

# Entries of a table row per program, and samples of a column at a time: 2048 elements as in the
# other kernels, of two tables at once in backward. Not timed, since the tables are small.
_ROW_BLOCK = 256
_COLUMN_ROWS = 8


class Parameters(NamedTuple):
    """A layer's weight and bias, each [C], and its logits, each [len(omega)]; None if absent."""

    weight: Tensor | None
    bias: Tensor | None
    mean_logits: Tensor | None
    var_logits: Tensor | None


class Layout:
    """Memory layout of the tables of a mixture of ``omega``, for one input shape.

    Raises:
        ValueError: ``replicas`` does not divide the samples, or ``channel_groups`` the channels.
    """

    def __init__(
        self,
        omega: Sequence[str],
        channel_groups: int,
        shape: torch.Size,
        replicas: int,
        eps: float,
    ) -> None:
        rows, channels = shape[:2]
        check_divides(rows, replicas)
        if channels % channel_groups:
            raise ValueError(f"num_groups={channel_groups} does not divide {channels} channels")
        self.eps = eps
        self.replicas = replicas
        self.rows, self.channels = rows, channels
        self.area = shape[2] * shape[3]
        self.sizes = (rows, replicas, channels, channel_groups)
        self.count = len(omega)

        entries = {"in": 0, "ln": rows, "bn": replicas * channels, "gn": rows * channel_groups}
        # mean, var, center, scale, shift, 1 / std; the weights; each member's mean and variance.
        self.weights = 6 * rows * channels
        end = self.weights + 2 * self.count
        self.member_at = dict.fromkeys(omega, 0)
        for member in sorted(omega, key=lambda member: member == "bn"):
            self.member_at[member] = end
            end += 2 * entries[member]
        self.size = end
        """Size of all tables together, in numbers."""


class Running(NamedTuple):
    """Running statistics [C] to update, their number of batches (0-d), and the momentum."""

    mean: Tensor
    var: Tensor
    batches: Tensor
    momentum: float


class TritonTables(Combiner):
    """The tables of one forward pass, in one allocation that is kept for backward: two launches
    forward and two backward, in addition to those over the activation.

    Args:
        layout: the memory layout of the tables.
        parameters: the layer's parameters.
        stored: BN's stored statistics [C], if they are used instead of the batch's.
        group: the ranks that share BN's statistics, each with equally many samples. They exchange
            the 2 R C numbers of their combined tables, once in each direction.
        running: the running statistics that forward updates, if it does.
    """

    inputs: Parameters

    def __init__(
        self,
        layout: Layout,
        parameters: Parameters,
        stored: Statistics | None = None,
        group: dist.ProcessGroup | None = None,
        running: Running | None = None,
    ) -> None:
        self.layout = layout
        self.inputs = parameters
        if parameters.weight is not None:
            self.saved = (parameters.weight,)
        self.stored = stored
        self.group = group if "bn" in layout.member_at and stored is None else None
        self.running = running
        self.buffer: Tensor
        omega = list(layout.member_at)
        self._positions = {
            f"{name.upper()}_K": omega.index(name) if name in omega else -1 for name in MEMBERS
        }
        self._offsets = tuple(layout.member_at.get(name, 0) for name in ("ln", "gn", "bn"))
        self._blocks = -(-layout.channels // _ROW_BLOCK)

    def forward(self, x: Tensor, kernels: Backend, differentiable: bool) -> Tensor:
        layout = self.layout
        self.buffer = x.new_empty(layout.size, dtype=statistics_dtype(x.dtype))
        tables = self.buffer.narrow(0, 0, layout.weights).view(6, layout.rows, layout.channels)
        self.mean, var, *_ = tables.unbind()
        TRITON.moments_into(x, self.mean, var)
        self._combine_statistics()
        if self.group is not None:
            local = self.batch()
            for table, combined in zip(local, combine_ranks(local, self.group), strict=True):
                table.copy_(combined)
        self._combine_coefficients()
        return tables[2:5]

    def backward(
        self, sums: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        from sn_imagenet.norms.closed_form import triton_backward as kernels

        layout, new = self.layout, self.buffer.new_empty
        rows, replicas, channels, groups = layout.sizes
        # Sums of the tables' gradients over each member's sets.
        columns = new((4, replicas, channels))
        scratch = (new(4 * rows), new(2 * rows * groups), columns)
        inputs = (self.buffer, sums, self._or_unused(self.inputs.weight), *scratch)
        flags = {"GAMMA": self.inputs.weight is not None, "BLOCK": _ROW_BLOCK}
        gn = self._positions["GN_K"]
        triton_launch.call(
            kernels.combine_gradient_sums_kernel,
            rows + rows * groups * (gn >= 0) + replicas * self._blocks,
            inputs,
            layout.sizes,
            {"GN_K": gn, "ROWS": _COLUMN_ROWS, **flags},
        )
        batch = columns[:2]
        if self.group is not None:
            batch = batch / dist.get_world_size(self.group)
            dist.all_reduce(batch, group=self.group)
        line = new((2, rows, channels))
        logits = new((2, layout.count))
        triton_launch.call(
            kernels.combine_gradient_kernel,
            rows * self._blocks + 1,
            (*inputs, batch, *line.unbind(), logits),
            (layout.area, *layout.sizes, layout.weights, *self._offsets),
            {
                "COUNT": layout.count,
                **self._positions,
                "STORED": self.stored is not None,
                "LOGITS": wanted[2] or wanted[3],
                **flags,
            },
        )
        affine = columns[2:]
        affine = affine[:, 0] if replicas == 1 else affine.sum(dim=1)
        gradients = [*affine.unbind(), *logits.unbind()]
        return line, [g if want else None for g, want in zip(gradients, wanted, strict=True)]

    def batch(self) -> Statistics:
        """BN's statistics of this batch, each [1, R, C]."""
        shape = (2, 1, self.layout.replicas, self.layout.channels)
        start = self.layout.member_at["bn"]
        mean, var = self.buffer.narrow(0, start, 2 * shape[2] * shape[3]).view(shape).unbind()
        return mean, var

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

        layout, running, unused = self.layout, self.running, self.buffer
        weight, bias, mean_logits, var_logits = self.inputs
        parameters = (mean_logits, var_logits, weight, bias)
        ranks = 1 if self.group is None else dist.get_world_size(self.group)
        values = layout.rows // layout.replicas * layout.area * ranks
        triton_launch.call(
            kernels.combine_coefficients_kernel,
            layout.rows * self._blocks,
            (
                unused,
                *map(self._or_unused, parameters),
                *((unused,) * 3 if running is None else running[:3]),
            ),
            (*layout.sizes, layout.weights, *self._offsets, values),
            {
                "COUNT": layout.count,
                **self._positions,
                "LOGITS": mean_logits is not None,
                "GAMMA": weight is not None,
                "BETA": bias is not None,
                "EPS": layout.eps,
                "MOMENTUM": -1.0 if running is None else running.momentum,
                "BLOCK": _ROW_BLOCK,
            },
        )
        if running is not None:  # autograd then refuses a backward that needs the old ones
            torch.autograd.graph.increment_version(running[:3])

    def _or_unused(self, tensor: Tensor | None) -> Tensor:
        """``tensor``, or a placeholder that the kernel does not read."""
        return self.buffer if tensor is None else tensor


def takes_tables(x: Tensor, *tables: Tensor | None) -> bool:
    """Whether the kernels for ``x`` can read these: floating, contiguous, on its device."""
    return all(
        t is None or (t.is_floating_point() and t.is_contiguous() and t.device == x.device)
        for t in tables
    )
