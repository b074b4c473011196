"""A mixture's tables in closed form: forward Eq. (3), backward Eqs. (7)-(14), without autograd."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sn_imagenet.norms.kernels import Affine, Backend, statistics_dtype
from sn_imagenet.norms.kernels.cpp import MEMBERS
from sn_imagenet.norms.moments import (
    RunningUpdate,
    Statistics,
    check_divides,
    combine_ranks,
    update_running,
)
from sn_imagenet.norms.op import Combiner


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

        self.table = rows * channels
        entries = {"in": 0, "ln": rows, "bn": replicas * channels, "gn": rows * channel_groups}
        # mean, var, center, scale, shift, 1 / std; the weights; each member's mean and variance.
        self.weights = 6 * self.table
        end = self.weights + 2 * self.count
        self.member_at = dict.fromkeys(omega, 0)
        for member in sorted(omega, key=lambda member: member == "bn"):
            self.member_at[member] = end
            end += 2 * entries[member]
        self.size = end
        """Size of all tables together, in numbers."""

        codes = [MEMBERS.index(member) for member in omega]
        unused = [0] * (len(MEMBERS) - self.count)
        member_numbers = (*codes, *unused, *self.member_at.values(), *unused)
        numbers = (*self.sizes, self.area, self.count, self.weights, *member_numbers)
        self.numbers = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        """This layout for combine.h, as its struct Layout."""


class Views(NamedTuple):
    """The [N, C] tables of one forward pass."""

    mean: Tensor
    var: Tensor
    center: Tensor
    scale: Tensor
    shift: Tensor
    rstd: Tensor


class MomentKernels(Backend, Protocol):
    """Kernels that can write the moments to given memory."""

    def moments_into(self, x: Tensor, mean: Tensor, var: Tensor) -> None: ...


class ClosedForm(Combiner):
    """The tables of one forward pass, in one allocation that is kept for backward.

    Args:
        layout: the memory layout of the tables.
        parameters: the layer's parameters.
        stored: BN's stored statistics [C], if they are used instead of the batch's.
        group: the ranks that share BN's statistics, each with equally many samples. They exchange
            the 2 R C numbers of their combined tables, once in each direction.
        update: the update of the running statistics that forward is to make.
    """

    kernels: ClassVar[MomentKernels]

    def __init__(
        self,
        layout: Layout,
        parameters: Parameters,
        stored: Statistics | None = None,
        group: dist.ProcessGroup | None = None,
        update: RunningUpdate | None = None,
    ) -> None:
        self.layout = layout
        self.parameters = parameters
        self.stored = stored
        self.group = group if "bn" in layout.member_at and stored is None else None
        self.update = update
        self.buffer: Tensor

    @cached_property
    def views(self) -> Views:
        layout = self.layout
        tables = self.buffer.narrow(0, 0, layout.weights).view(6, layout.rows, layout.channels)
        return Views(*tables.unbind())

    @property
    def inputs(self) -> Parameters:
        return self.parameters

    @property
    def mean(self) -> Tensor:
        return self.views.mean

    def forward(self, x: Tensor, kernels: Backend, differentiable: bool) -> Affine:
        self.buffer = x.new_empty(self.layout.size, dtype=statistics_dtype(x.dtype))
        mean, var, center, scale, shift, _ = self.views
        self.kernels.moments_into(x, mean, var)
        self._combine_statistics()
        if self.group is not None:
            local = self.batch()
            for table, combined in zip(local, combine_ranks(local, self.group), strict=True):
                table.copy_(combined)
        if self.update is not None:
            self.update_running(*self.update)
        self._combine_coefficients()
        return Affine(center, scale, shift)

    def parameters_to_save(self) -> tuple[Tensor, ...]:
        weight = self.parameters.weight
        return () if weight is None else (weight,)

    def backward(
        self, sums: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        scratch, batch = self._combine_gradient_sums(sums, wanted)
        if self.group is not None:
            batch = batch / dist.get_world_size(self.group)
            dist.all_reduce(batch, group=self.group)
        b, c, parameters = self._combine_gradient(scratch, batch)
        chosen = [g if want else None for g, want in zip(parameters, wanted, strict=True)]
        return b, c, chosen

    @abstractmethod
    def _combine_statistics(self) -> None:
        """Mean and variance of each member but IN, from the moments or the stored statistics."""

    @abstractmethod
    def _combine_coefficients(self) -> None:
        """Eq. (3): center, scale, shift and 1 / std, from the members' statistics."""

    @abstractmethod
    def _combine_gradient_sums(self, sums: Tensor, wanted: Sequence[bool]) -> tuple[Any, Tensor]:
        """From backward's ``sums`` [2, N, C]: the input of :meth:`_combine_gradient`, and BN's part
        of it [2, R, C], the means or sums of Eqs. (8) and (7) over its sets, to average over ranks.
        """

    @abstractmethod
    def _combine_gradient(
        self, scratch: Any, batch: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Eq. (9) on the tables: b and c of the input gradient, each [N, C]; then the gradients of
        :class:`Parameters`, at least the wanted ones.
        """

    def batch(self) -> Statistics:
        """BN's statistics of this batch, each [1, R, C]."""
        shape = (2, 1, self.layout.replicas, self.layout.channels)
        start = self.layout.member_at["bn"]
        mean, var = self.buffer.narrow(0, start, 2 * shape[2] * shape[3]).view(shape).unbind()
        return mean, var

    def update_running(self, running: Statistics, momentum: float | Tensor, unbias: float) -> None:
        """See :func:`~sn_imagenet.norms.moments.update_running`."""
        update_running(running, self.batch(), momentum, unbias)
