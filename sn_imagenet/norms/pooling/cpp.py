"""A mixture's tables on the CPU, by the compiled functions of pooling.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.norms.moments import Statistics
from sn_imagenet.norms.passes import CPP
from sn_imagenet.norms.passes.compiler import load_library
from sn_imagenet.norms.passes.cpp import SUFFIX, pointer
from sn_imagenet.norms.pooling.closed_form import ClosedForm, takes_parameters

SOURCE = Path(__file__).with_name("pooling.cpp")

_POINTER, _DOUBLE = ctypes.c_void_p, ctypes.c_double
_SIGNATURES: dict[str, list[Any]] = {
    "mixture_statistics": [_POINTER] * 4,
    "mixture_coefficients": [*[_POINTER] * 6, _DOUBLE],
    "mixture_gradient_sums": [_POINTER] * 10,
    "mixture_gradient": [_POINTER] * 6,
    "update_running": [*[_POINTER] * 4, _DOUBLE, _DOUBLE, ctypes.c_int64],
}


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The compiled function ``name`` for tables of ``dtype``."""
    library = load_library(SOURCE)
    assert library is not None
    function = getattr(library, f"{name}_{SUFFIX[dtype]}")
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


class CppTables(ClosedForm):
    """Plain loops over a few thousand numbers: one thread, no operator's overhead."""

    passes = CPP

    @staticmethod
    def available() -> bool:
        return load_library(SOURCE) is not None

    def _call(self, name: str, *arguments: Any) -> None:
        _function(name, self.buffer.dtype)(
            self.layout.numbers.data_ptr(), self.buffer.data_ptr(), *arguments
        )

    def _pool_statistics(self) -> None:
        self._call("mixture_statistics", *map(pointer, self.stored or (None, None)))

    def _pool_coefficients(self) -> None:
        weight, bias, *logits = map(pointer, self.parameters)
        self._call("mixture_coefficients", *logits, weight, bias, self.layout.eps)

    def _pool_gradient_sums(
        self, sums: Tensor, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, list[Tensor | None]], Tensor]:
        layout = self.layout
        new = self.buffer.new_empty
        scratch = new((2, layout.table))
        batch = new((2, layout.replicas, layout.channels))
        # The compiled function makes both logits' gradients or neither.
        want_logits = wanted[2] or wanted[3]
        gradients = [
            new(size) if want else None
            for size, want in zip(
                (layout.channels, layout.channels, layout.count, layout.count),
                (*wanted[:2], want_logits, want_logits),
                strict=True,
            )
        ]
        tensors = (sums, self.parameters.weight, scratch, batch, *gradients)
        self._call("mixture_gradient_sums", *map(pointer, tensors))
        return (scratch, gradients), batch

    def _pool_gradient(
        self, scratch: tuple[Tensor, list[Tensor | None]], batch: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        pooled, gradients = scratch
        b, c = torch.empty_like(self.mean), torch.empty_like(self.mean)
        tensors = (pooled, batch if self.stored is None else None, b, c)
        self._call("mixture_gradient", *map(pointer, tensors))
        return b, c, gradients

    def update_running(self, running: Statistics, momentum: float | Tensor, unbias: float) -> None:
        if not takes_parameters(self.buffer, running):
            super().update_running(running, momentum, unbias)
            return
        pointers = map(pointer, (*running, *self.batch()))
        function = _function("update_running", self.buffer.dtype)
        function(*pointers, float(momentum), unbias, self.layout.channels)
