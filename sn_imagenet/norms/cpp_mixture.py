"""A mixture's tables on the CPU, by the compiled functions of backends/pooling.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from sn_imagenet.norms.backends import CPP, cpp
from sn_imagenet.norms.backends.cpp import pointer
from sn_imagenet.norms.mixture import Parameters, Tables
from sn_imagenet.norms.moments import Statistics


class CppTables(Tables):
    """Plain loops over a few thousand numbers: one thread, no operator's overhead."""

    passes = CPP

    def _pool_statistics(self, stored: Statistics | None) -> None:
        plan, views = self.layout, self.views
        stored_mean, stored_var = stored or (None, None)
        cpp.kernel("mixture_statistics", self.buffer.dtype)(
            views.mean.data_ptr(),
            views.var.data_ptr(),
            plan.codes.data_ptr(),
            plan.count,
            pointer(stored_mean),
            pointer(stored_var),
            self._at(plan.members),
            *plan.sizes,
        )

    def _pool_coefficients(self, parameters: Parameters) -> None:
        plan, views = self.layout, self.views
        weight, bias, mean_logits, var_logits = map(pointer, parameters)
        cpp.kernel("mixture_coefficients", self.buffer.dtype)(
            views.mean.data_ptr(),
            views.var.data_ptr(),
            plan.codes.data_ptr(),
            plan.count,
            mean_logits,
            var_logits,
            weight,
            bias,
            plan.eps,
            views.center.data_ptr(),
            views.scale.data_ptr(),
            views.shift.data_ptr(),
            views.rstd.data_ptr(),
            self._at(plan.weights),
            self._at(plan.members),
            *plan.sizes,
        )

    def _pool_gradient_sums(
        self, sums: Tensor, weight: Tensor | None, wanted: tuple[bool, ...]
    ) -> tuple[tuple[Tensor, list[Tensor | None]], Tensor]:
        plan, views = self.layout, self.views
        new = self.buffer.new_empty
        scratch = new((2, plan.table))
        batch = new((2, plan.replicas, plan.channels))
        # The compiled function makes both logits' gradients or neither.
        want_logits = wanted[2] or wanted[3]
        gradients = [
            new(size) if want else None
            for size, want in zip(
                (plan.channels, plan.channels, plan.count, plan.count),
                (*wanted[:2], want_logits, want_logits),
                strict=True,
            )
        ]
        cpp.kernel("mixture_gradient_sums", self.buffer.dtype)(
            sums[0].data_ptr(),
            sums[1].data_ptr(),
            views.mean.data_ptr(),
            views.var.data_ptr(),
            plan.codes.data_ptr(),
            plan.count,
            pointer(weight),
            views.center.data_ptr(),
            views.scale.data_ptr(),
            views.rstd.data_ptr(),
            self._at(plan.weights),
            self._at(plan.members),
            scratch[0].data_ptr(),
            scratch[1].data_ptr(),
            batch.data_ptr(),
            *map(pointer, gradients),
            *plan.sizes,
        )
        return (scratch, gradients), batch

    def _pool_gradient(
        self, scratch: tuple[Tensor, list[Tensor | None]], batch: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        plan, views = self.layout, self.views
        (dmean, dvar), gradients = scratch
        b, c = torch.empty_like(views.mean), torch.empty_like(views.mean)
        cpp.kernel("mixture_gradient", self.buffer.dtype)(
            dmean.data_ptr(),
            dvar.data_ptr(),
            batch.data_ptr(),
            views.mean.data_ptr(),
            plan.codes.data_ptr(),
            plan.count,
            self.stored,
            self._at(plan.weights),
            self._at(plan.members),
            b.data_ptr(),
            c.data_ptr(),
            plan.area,
            *plan.sizes,
        )
        return b, c, gradients

    def update_running(self, mean: Tensor, var: Tensor, momentum: float, unbias: float) -> None:
        batch_mean, batch_var = self.batch()
        pointers = map(pointer, (mean, var, batch_mean, batch_var))
        cpp.kernel("update_running", mean.dtype)(*pointers, momentum, unbias, self.layout.channels)

    def _at(self, position: int) -> int:
        return self.buffer.data_ptr() + position * self.buffer.element_size()
