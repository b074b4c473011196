"""Mixtures of members in closed form: the built-in methods without autograd on the tables.

A mixture normalises with mean = sum_k w_k mean_k and var = sum_k w'_k var_k (Eq. (3)). Batch,
instance, layer and group normalisation are mixtures of one member; SN mixes several. Their
backward on the [N, C] tables is Eqs. (7)-(14); written out, and compiled where a compiler is at
hand, it costs a few microseconds, where autograd's walk over the same small tables takes longer
than a small layer's whole normalisation. Every other method's :meth:`pool` is differentiated by
autograd (op.py), and so are these wherever this path does not apply.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sn_imagenet.norms.backends import Affine, Backend, statistics_dtype
from sn_imagenet.norms.moments import Statistics

MEMBERS = ("in", "ln", "bn", "gn")


@dataclass(frozen=True)
class Mixture:
    """Which members a layer mixes, and the groups of gn among its channels.

    ``codes`` are the members' positions in :data:`MEMBERS`, as the compiled pooling numbers them.
    """

    members: tuple[str, ...]
    channel_groups: int = 1

    @property
    def codes(self) -> tuple[int, ...]:
        return tuple(MEMBERS.index(member) for member in self.members)


class Parameters(NamedTuple):
    """A layer's weight and bias [C] and logits of its weights [members], those that it has."""

    weight: Tensor | None
    bias: Tensor | None
    mean_logits: Tensor | None
    var_logits: Tensor | None


class CompiledMixture:
    """One layer's mixture for one input shape: how its tables lie in memory.

    Every forward pass fills its own :class:`Tables`.
    """

    def __init__(self, mixture: Mixture, shape: torch.Size, replicas: int, eps: float) -> None:
        rows, channels = shape[:2]
        self.eps = eps
        self.replicas = replicas
        self.rows, self.channels = rows, channels
        self.area = shape[2] * shape[3]
        self.sizes = (rows, replicas, channels, mixture.channel_groups)
        self.count = len(mixture.members)
        self.codes = torch.tensor(mixture.codes, dtype=torch.int32)

        self.table = rows * channels
        entries = {
            "in": 0,
            "ln": rows,
            "bn": replicas * channels,
            "gn": rows * mixture.channel_groups,
        }
        # mean, var, center, scale, shift, 1 / std; the weights; each member's mean and variance.
        self.weights = 6 * self.table
        self.members = self.weights + 2 * self.count
        end = self.members
        self.member_at: dict[str, int] = {}
        for member in mixture.members:
            self.member_at[member] = end
            end += 2 * entries[member]
        self.kept = end


class Views(NamedTuple):
    """The [N, C] tables of one forward pass."""

    mean: Tensor
    var: Tensor
    center: Tensor
    scale: Tensor
    shift: Tensor
    rstd: Tensor


class Passes(Backend, Protocol):
    """A backend that can write the moments where it is told."""

    def moments_into(self, x: Tensor, mean: Tensor, var: Tensor) -> None: ...


class Tables(ABC):
    """The tables of one forward pass, in one allocation that backward keeps.

    Args:
        layout: where each table lies.
        group: the ranks over which BN's statistics span, each with as many samples. They exchange
            the 2 R C numbers of their own pooled tables, once in each direction.
    """

    passes: Passes

    def __init__(self, layout: CompiledMixture, group: dist.ProcessGroup | None = None) -> None:
        self.layout = layout
        self.group = group if "bn" in layout.member_at else None
        self.stored = False
        self.buffer: Tensor
        self.views: Views

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        relu: bool,
        stored: Statistics | None,
        parameters: Parameters,
    ) -> Tensor:
        """The layer's output; BN's statistics are ``stored`` where they are given."""
        plan = self.layout
        self.stored = stored is not None
        self.buffer = x.new_empty(plan.kept, dtype=statistics_dtype(x.dtype))
        rows = self.buffer.narrow(0, 0, plan.weights).view(6, plan.rows, plan.channels)
        self.views = Views(*rows.unbind())
        mean, var, center, scale, shift, _ = self.views
        self.passes.moments_into(x, mean, var)
        self._pool_statistics(stored)
        if self._spans_ranks:
            self._join_statistics()
        self._pool_coefficients(parameters)
        return self.passes.affine(x, Affine(center, scale, shift), relu, residual)

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        y: Tensor | None,
        relu: bool,
        weight: Tensor | None,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, residual, weight, bias, mean_logits and var_logits, where ``wanted``.

        ``y`` is the output where a residual went into its ReLU.
        """
        mean, _, center, scale, shift, _ = self.views
        gate = Affine(center, scale, shift) if relu else None
        sums, grad = self.passes.gradient_sums(grad, x, mean, gate if y is None else y)
        scratch, batch = self._pool_gradient_sums(sums, weight, wanted[2:])
        if self._spans_ranks:
            batch = batch / dist.get_world_size(self.group)
            dist.all_reduce(batch, group=self.group)
        b, c, parameters = self._pool_gradient(scratch, batch, weight)
        dx = None
        if wanted[0]:
            behind = gate if y is None else None
            dx = self.passes.input_gradient(grad, x, mean, scale, b, c, behind)
        chosen = (g if want else None for g, want in zip(parameters, wanted[2:], strict=True))
        return dx, grad if wanted[1] else None, *chosen

    @abstractmethod
    def _pool_statistics(self, stored: Statistics | None) -> None:
        """Each pooled member's mean and variance, from the moments or from what is stored."""

    @abstractmethod
    def _pool_coefficients(self, parameters: Parameters) -> None:
        """Eq. (3): center, scale, shift and 1 / std, from the members'."""

    @abstractmethod
    def _pool_gradient_sums(
        self, sums: Tensor, weight: Tensor | None, wanted: tuple[bool, ...]
    ) -> tuple[Any, Tensor]:
        """From backward's ``sums`` [2, N, C]: what :meth:`_pool_gradient` takes, and BN's share of
        it [2, R, C], the means or sums of Eqs. (8) and (7) over its sets, which ranks average.
        """

    @abstractmethod
    def _pool_gradient(
        self, scratch: Any, batch: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Eq. (9) on the tables: b and c of the input gradient, each [N, C]; then the gradients of
        :class:`Parameters`, those that were wanted at least.
        """

    @property
    def _spans_ranks(self) -> bool:
        return self.group is not None and not self.stored

    def _join_statistics(self) -> None:
        """Each rank's mean and variance of its samples -> those of all, by Eq. (5)'s law."""
        own = torch.stack(self.batch())
        gathered = own.new_empty((dist.get_world_size(self.group), *own.shape))
        dist.all_gather(list(gathered.unbind()), own, group=self.group)
        means, variances = gathered.unbind(1)
        between, total = torch.var_mean(means, dim=0, correction=0)
        mean, var = self.batch()
        mean.copy_(total)
        torch.add(variances.mean(dim=0), between, out=var)

    def batch(self) -> Statistics:
        """BN's statistics of this batch, each [R, C]."""
        plan = self.layout
        size = 2 * plan.replicas * plan.channels
        both = self.buffer.narrow(0, plan.member_at["bn"], size)
        mean, var = both.view(2, plan.replicas, plan.channels).unbind()
        return mean, var

    def update_running(self, mean: Tensor, var: Tensor, momentum: float, unbias: float) -> None:
        """Move the running statistics [C] towards this batch's of the first replica.

        They are contiguous, of the tables' dtype and on their device (:func:`takes_parameters`);
        the batch's variance counts times ``unbias``.
        """
        batch_mean, batch_var = self.batch()
        mean.lerp_(batch_mean[0], momentum)
        var.lerp_(batch_var[0] * unbias, momentum)


class MixtureFunction(torch.autograd.Function):
    """``Tables`` as one autograd node; keeps x and the tables, and behind a residual's ReLU y."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        tables: Tables,
        relu: bool,
        stored: Statistics | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        ctx.tables, ctx.relu = tables, relu
        own = Parameters(*parameters)
        y = tables.forward(x, residual, relu, stored, own)
        ctx.save_for_backward(x, y if relu and residual is not None else None, own.weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx, dresidual, *parameters = ctx.tables.backward(
            grad, x, y, ctx.relu, weight, (*wanted[:2], *wanted[5:])
        )
        return dx, dresidual, None, None, None, *parameters


def takes_parameters(x: Tensor, parameters: tuple[Tensor | None, ...]) -> bool:
    """Whether the compiled pooling can read them: of the tables' dtype and device, contiguous."""
    dtype = statistics_dtype(x.dtype)
    return all(
        p is None or (p.dtype == dtype and p.is_contiguous() and p.device == x.device)
        for p in parameters
    )
