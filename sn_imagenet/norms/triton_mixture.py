"""A mixture's tables on a GPU, by the kernels of backends/triton_pooling.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sn_imagenet.norms.backends.native import statistics_dtype
from sn_imagenet.norms.backends.triton_backend import TritonBackend, on_device
from sn_imagenet.norms.mixture import CompiledMixture, Tables
from sn_imagenet.norms.moments import Statistics

_PASSES = TritonBackend()
# Entries of a table row per program; samples of a column at a time. 2048 elements as in the
# passes, of two tables at once in backward.
_ROW_BLOCK = 256
_COLUMN_ROWS = 8


class TritonTables(Tables):
    """Two launches forward and two backward beside the passes over the activation."""

    def __init__(self, layout: CompiledMixture) -> None:
        super().__init__(layout)
        size = layout.table
        members = list(layout.member_at)
        self._places = {
            f"{name.upper()}_K": members.index(name) if name in members else -1
            for name in ("in", "ln", "bn", "gn")
        }
        self._at = tuple(layout.member_at.get(name, 0) for name in ("ln", "gn", "bn"))
        self._slices = [slice(k * size, (k + 1) * size) for k in range(5)]

    def forward(
        self,
        x: Tensor,
        stored: Statistics | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean_logits: Tensor | None,
        var_logits: Tensor | None,
    ) -> Tensor:
        from sn_imagenet.norms.backends import triton_pooling as kernels

        plan, places = self.layout, self._places
        rows, replicas, channels, groups = plan.sizes
        self.stored = stored is not None
        self.buffer = x.new_empty(plan.kept, dtype=statistics_dtype(x.dtype))
        shift = self.buffer.new_empty(plan.table)
        mean, var, center, scale, _ = (self.buffer[s] for s in self._slices)
        _PASSES.moments_into(x, mean, var)
        stored_mean, stored_var = stored or (self.buffer, self.buffer)
        blocks = -(-channels // _ROW_BLOCK)
        pooled = (
            rows * (places["LN_K"] >= 0)
            + rows * groups * (places["GN_K"] >= 0)
            + replicas * blocks * (places["BN_K"] >= 0)
        )
        with on_device(x):
            if pooled:
                kernels.pool_statistics_kernel[(pooled,)](
                    self.buffer,
                    stored_mean,
                    stored_var,
                    *plan.sizes,
                    *self._at,
                    LN_K=places["LN_K"],
                    GN_K=places["GN_K"],
                    STORED=self.stored,
                    BLOCK=_ROW_BLOCK,
                    ROWS=_COLUMN_ROWS,
                )
            kernels.pool_coefficients_kernel[(rows * blocks,)](
                self.buffer,
                shift,
                _or(mean_logits, self.buffer),
                _or(var_logits, self.buffer),
                _or(weight, self.buffer),
                _or(bias, self.buffer),
                *plan.sizes,
                plan.weights,
                *self._at,
                COUNT=plan.count,
                **places,
                LOGITS=mean_logits is not None,
                AFFINE=weight is not None,
                EPS=plan.eps,
                BLOCK=_ROW_BLOCK,
            )
        return _PASSES.affine(x, center, scale, shift)

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        from sn_imagenet.norms.backends import triton_pooling_backward as kernels

        plan, places = self.layout, self._places
        rows, replicas, channels, groups = plan.sizes
        want_x, want_weight, want_bias, want_mean, want_var = wanted
        mean, _, _, scale, _ = (self.buffer[s] for s in self._slices)
        sums = _PASSES.both_gradient_sums(grad, x, mean)
        new = self.buffer.new_empty
        row_sums, group_sums = new(4 * rows), new(2 * rows * groups)
        column_sums = new((4, replicas, channels))
        coefficients, logits = new((2, plan.table)), new((2, plan.count))
        blocks = -(-channels // _ROW_BLOCK)
        common: dict[str, Any] = {"AFFINE": weight is not None, "BLOCK": _ROW_BLOCK}
        gradients = (
            self.buffer,
            sums,
            _or(weight, self.buffer),
            row_sums,
            group_sums,
            column_sums,
        )
        with on_device(x):
            programs = rows + rows * groups * (places["GN_K"] >= 0) + replicas * blocks
            kernels.pool_gradient_sums_kernel[(programs,)](
                *gradients, *plan.sizes, GN_K=places["GN_K"], ROWS=_COLUMN_ROWS, **common
            )
            kernels.pool_gradient_kernel[(rows * blocks + 1,)](
                *gradients,
                coefficients[0],
                coefficients[1],
                logits,
                plan.area,
                *plan.sizes,
                plan.weights,
                *self._at,
                COUNT=plan.count,
                **places,
                STORED=self.stored,
                LOGITS=want_mean or want_var,
                **common,
            )
        dx = None
        if want_x:
            dx = _PASSES.input_gradient(grad, x, mean, scale, *coefficients.unbind())
        affine = column_sums[2:, 0] if replicas == 1 else column_sums[2:].sum(dim=1)
        return (
            dx,
            affine[0] if want_weight else None,
            affine[1] if want_bias else None,
            logits[0] if want_mean else None,
            logits[1] if want_var else None,
        )


def _or(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """A pointer for a kernel that will not follow it."""
    return unused if tensor is None else tensor
