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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sn_imagenet.norms.backends import cpp
from sn_imagenet.norms.backends.native import statistics_dtype
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

        table = rows * channels
        entries = {
            "in": 0,
            "ln": rows,
            "bn": replicas * channels,
            "gn": rows * mixture.channel_groups,
        }
        # mean, var, center, scale, 1 / std; then the weights; then each member's mean and variance.
        self.weights = 5 * table
        self.members = self.weights + 2 * self.count
        end = self.members
        self.member_at: dict[str, int] = {}
        for member in mixture.members:
            self.member_at[member] = end
            end += 2 * entries[member]
        self.kept = end
        self.table = table


class Tables(ABC):
    """The tables of one forward pass, in one allocation that backward keeps."""

    def __init__(self, layout: CompiledMixture) -> None:
        self.layout = layout
        self.buffer: Tensor
        self.stored = False

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        stored: Statistics | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean_logits: Tensor | None,
        var_logits: Tensor | None,
    ) -> Tensor:
        """The layer's output; BN's statistics are ``stored`` where they are given."""

    @abstractmethod
    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias, mean_logits and var_logits, those that are ``wanted``."""

    def batch(self) -> Statistics:
        """BN's statistics of this batch, each [R, C]."""
        plan = self.layout
        size = 2 * plan.replicas * plan.channels
        both = self.buffer.narrow(0, plan.member_at["bn"], size)
        mean, var = both.view(2, plan.replicas, plan.channels).unbind()
        return mean, var

    def update_running(self, mean: Tensor, var: Tensor, momentum: float, unbias: float) -> None:
        """Move running statistics, each [C], towards those of the batch's first replica."""
        batch_mean, batch_var = self.batch()
        mean.lerp_(batch_mean[0], momentum)
        var.lerp_(batch_var[0] * unbias, momentum)


class CppTables(Tables):
    """By the compiled C++ functions."""

    def forward(
        self,
        x: Tensor,
        stored: Statistics | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean_logits: Tensor | None,
        var_logits: Tensor | None,
    ) -> Tensor:
        plan = self.layout
        dtype = statistics_dtype(x.dtype)
        self.buffer = torch.empty(plan.kept, dtype=dtype)
        self.stored = stored is not None
        shift = torch.empty(plan.table, dtype=dtype)
        y = torch.empty_like(x)
        sizes = cpp.layout(x)
        size = self.buffer.element_size()
        start, step = self.buffer.data_ptr(), plan.table * size
        mean, var, center, scale, rstd = (start + k * step for k in range(5))

        cpp.kernel("moments", x.dtype)(x.data_ptr(), mean, var, *sizes)
        cpp.kernel("mixture_forward", dtype)(
            mean,
            var,
            plan.codes.data_ptr(),
            plan.count,
            _pointer(mean_logits),
            _pointer(var_logits),
            _pointer(weight),
            _pointer(bias),
            _pointer(stored[0] if stored else None),
            _pointer(stored[1] if stored else None),
            plan.eps,
            center,
            scale,
            shift.data_ptr(),
            rstd,
            start + plan.weights * size,
            start + plan.members * size,
            *plan.sizes,
        )
        pointers = x.data_ptr(), center, scale, shift.data_ptr(), y.data_ptr()
        cpp.kernel("affine", x.dtype)(*pointers, *sizes)
        return y

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        plan = self.layout
        dtype = self.buffer.dtype
        size = self.buffer.element_size()
        start, step = self.buffer.data_ptr(), plan.table * size
        mean, var, center, scale, rstd = (start + k * step for k in range(5))
        scratch = torch.empty(4 * plan.table, dtype=dtype)
        sums, products, b, c = (scratch.data_ptr() + k * step for k in range(4))
        grad = cpp.like(grad, x)
        sizes = cpp.layout(x)

        inputs = grad.data_ptr(), x.data_ptr(), mean
        cpp.kernel("gradient_sums", x.dtype)(*inputs, sums, products, *sizes)
        want_x, want_weight, want_bias, want_mean, want_var = wanted
        dweight = torch.empty(plan.channels, dtype=dtype) if want_weight else None
        dbias = torch.empty(plan.channels, dtype=dtype) if want_bias else None
        # The compiled function makes both logits' gradients or neither.
        want_logits = want_mean or want_var
        dmean = torch.empty(plan.count, dtype=dtype) if want_logits else None
        dvar = torch.empty(plan.count, dtype=dtype) if want_logits else None
        cpp.kernel("mixture_backward", dtype)(
            sums,
            products,
            mean,
            var,
            plan.codes.data_ptr(),
            plan.count,
            self.stored,
            _pointer(weight),
            center,
            scale,
            rstd,
            start + plan.weights * size,
            start + plan.members * size,
            b,
            c,
            _pointer(dweight),
            _pointer(dbias),
            _pointer(dmean),
            _pointer(dvar),
            plan.area,
            *plan.sizes,
        )
        dx = None
        if want_x:
            dx = torch.empty_like(x)
            cpp.kernel("input_gradient", x.dtype)(*inputs, scale, b, c, dx.data_ptr(), *sizes)
        return dx, dweight, dbias, dmean if want_mean else None, dvar if want_var else None

    def update_running(self, mean: Tensor, var: Tensor, momentum: float, unbias: float) -> None:
        plan = self.layout
        size = self.buffer.element_size()
        batch_mean = self.buffer.data_ptr() + plan.member_at["bn"] * size
        batch_var = batch_mean + plan.replicas * plan.channels * size
        cpp.kernel("update_running", mean.dtype)(
            mean.data_ptr(), var.data_ptr(), batch_mean, batch_var, momentum, unbias, plan.channels
        )


class MixtureFunction(torch.autograd.Function):
    """``Tables`` as one autograd node; keeps x and the tables."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tables: Tables,
        stored: Statistics | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean_logits: Tensor | None,
        var_logits: Tensor | None,
    ) -> Tensor:
        ctx.tables = tables
        ctx.save_for_backward(x, weight)
        return tables.forward(x, stored, weight, bias, mean_logits, var_logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx, *parameters = ctx.tables.backward(grad, x, weight, (wanted[0], *wanted[3:]))
        return dx, None, None, *parameters


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def takes_parameters(x: Tensor, parameters: tuple[Tensor | None, ...]) -> bool:
    """Whether the compiled pooling can read them: of the tables' dtype and device, contiguous."""
    dtype = statistics_dtype(x.dtype)
    return all(
        p is None or (p.dtype == dtype and p.is_contiguous() and p.device == x.device)
        for p in parameters
    )
