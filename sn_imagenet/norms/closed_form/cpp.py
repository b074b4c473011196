"""A mixture's tables on the CPU if ranks share BN's statistics, by the functions of combine.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.norms.closed_form.combiner import ClosedForm
from sn_imagenet.norms.kernels import CPP, takes_tables
from sn_imagenet.norms.kernels.cpp import library
from sn_imagenet.norms.moments import Statistics

_POINTER, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_double, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "mixture_statistics": [*[_POINTER] * 4, _INT],
    "mixture_coefficients": [*[_POINTER] * 6, _DOUBLE, _INT],
    "mixture_gradient_sums": [*[_POINTER] * 10, _INT],
    "mixture_gradient": [*[_POINTER] * 6, _INT],
    "update_running": [*[_POINTER] * 4, _DOUBLE, _DOUBLE, ctypes.c_int64],
}
SUFFIX = {torch.float32: "float32", torch.float64: "float64"}


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The compiled function ``name`` for tables of ``dtype``."""
    function: Callable[..., None] = getattr(library(), f"{name}_{SUFFIX[dtype]}")
    function.argtypes, function.restype = _SIGNATURES[name], None  # type: ignore[attr-defined]
    return function


def pointer(tensor: Tensor | None) -> int | None:
    """The tensor's address for the compiled functions; None is a null pointer."""
    return None if tensor is None else tensor.data_ptr()


class CppTables(ClosedForm):
    """Plain loops over a few thousand numbers, without the overhead of operators."""

    kernels = CPP

    def _new_gradients(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Memory for the wanted gradients. If one logit's is wanted, both are allocated, because
        the compiled function computes both or neither.
        """
        want_logits = wanted[2] or wanted[3]
        allocated = (*wanted[:2], want_logits, want_logits)
        return [
            torch.empty_like(parameter) if want and parameter is not None else None
            for parameter, want in zip(self.parameters, allocated, strict=True)
        ]

    def _call(self, name: str, *arguments: Any) -> None:
        _function(name, self.buffer.dtype)(
            self.layout.numbers.data_ptr(),
            self.buffer.data_ptr(),
            *arguments,
            torch.get_num_threads(),
        )

    def _combine_statistics(self) -> None:
        self._call("mixture_statistics", *map(pointer, self.stored or (None, None)))

    def _combine_coefficients(self) -> None:
        weight, bias, *logits = map(pointer, self.parameters)
        self._call("mixture_coefficients", *logits, weight, bias, self.layout.eps)

    def _combine_gradient_sums(
        self, sums: Tensor, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, list[Tensor | None]], Tensor]:
        layout = self.layout
        new = self.buffer.new_empty
        scratch = new((2, layout.table))
        batch = new((2, layout.replicas, layout.channels))
        gradients = self._new_gradients(wanted)
        tensors = (sums, self.parameters.weight, scratch, batch, *gradients)
        self._call("mixture_gradient_sums", *map(pointer, tensors))
        return (scratch, gradients), batch

    def _combine_gradient(
        self, scratch: tuple[Tensor, list[Tensor | None]], batch: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        statistics_gradients, gradients = scratch
        b, c = torch.empty_like(self.mean), torch.empty_like(self.mean)
        tensors = (statistics_gradients, batch if self.stored is None else None, b, c)
        self._call("mixture_gradient", *map(pointer, tensors))
        return b, c, gradients

    def update_running(self, running: Statistics, momentum: float | Tensor, unbias: float) -> None:
        if not takes_tables(self.buffer, *running):
            super().update_running(running, momentum, unbias)
            return
        mean, var = running
        layout, width = self.layout, self.buffer.itemsize
        at = self.buffer.data_ptr() + layout.member_at["bn"] * width
        _function("update_running", self.buffer.dtype)(
            mean.data_ptr(),
            var.data_ptr(),
            at,
            at + layout.replicas * layout.channels * width,
            float(momentum),
            unbias,
            layout.channels,
        )
