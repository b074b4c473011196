"""A mixture's tables on the CPU, computed by the compiled functions of combine.cpp."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.native import load_library
from sn_imagenet.norms.closed_form.combiner import ClosedForm, Layout, takes_parameters
from sn_imagenet.norms.kernels import CPP, Backend, statistics_dtype, with_layout_of
from sn_imagenet.norms.kernels.cpp import OTHERWISE, SUFFIX, kernel, kernel_sizes, pointer
from sn_imagenet.norms.moments import Statistics

SOURCE = Path(__file__).with_name("combine.cpp")
LAYER = Path(__file__).with_name("layer.cpp")
NODE = Path(__file__).with_name("node.cpp")

_POINTER, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_double, ctypes.c_int
_SIZES = [_INT, _INT, *[ctypes.c_int64] * 3, _INT, _INT]
_SIGNATURES: dict[str, list[Any]] = {
    "mixture_statistics": [*[_POINTER] * 4, _INT],
    "mixture_coefficients": [*[_POINTER] * 6, _DOUBLE, _INT],
    "mixture_gradient_sums": [*[_POINTER] * 10, _INT],
    "mixture_gradient": [*[_POINTER] * 6, _INT],
    "update_running": [*[_POINTER] * 4, _DOUBLE, _DOUBLE, ctypes.c_int64],
}


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The compiled function ``name`` for tables of ``dtype``."""
    library = load_library(SOURCE, otherwise=OTHERWISE)
    assert library is not None
    function = getattr(library, f"{name}_{SUFFIX[dtype]}")
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


_LAYER_SIGNATURES = {
    "mixture_forward": [*[_POINTER] * 12, _DOUBLE, *_SIZES],
    "mixture_backward": [*[_POINTER] * 9, _INT, *[_POINTER] * 5, *_SIZES],
}


@cache
def _layer_function(name: str) -> Callable[..., None]:
    library = load_library(LAYER, otherwise=OTHERWISE)
    assert library is not None
    function = getattr(library, name)
    function.argtypes, function.restype = _LAYER_SIGNATURES[name], None
    return function


@cache
def _calls(dtype: torch.dtype) -> Any:
    """layer.cpp's struct Calls for activations of ``dtype``."""
    tables = statistics_dtype(dtype)
    functions: list[Any] = [
        *(kernel(name, dtype) for name in ("moments", "affine", "gradient_sums", "input_gradient")),
        *(_function(f"mixture_{name}", tables) for name in ("statistics", "coefficients")),
        *(_function(f"mixture_{name}", tables) for name in ("gradient_sums", "gradient")),
    ]
    return (_POINTER * len(functions))(*(ctypes.cast(f, _POINTER) for f in functions))


@cache
def node() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """node.cpp's operator, a whole layer as one node of autograd's graph, or None if it cannot be
    built. The first call builds it, in half a minute.
    """
    torch_folder = Path(torch.__file__).parent
    library = load_library(
        NODE,
        *("-O1", "-std=c++20", f"-I{torch_folder / 'include'}"),
        f"-I{torch_folder / 'include/torch/csrc/api/include'}",
        *("-Wl,--no-as-needed", f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
        f"-DBUILT_FOR_TORCH_{torch.__version__.translate(_TO_IDENTIFIER)}",
        otherwise="normalization on the CPU spends more time in Python",
    )
    if library is None:
        return None
    if not hasattr(torch.ops.sn_imagenet, "mixture"):  # unless another copy of this package did
        library.register_operator()
    operator: Callable[..., tuple[Tensor, Tensor]] = torch.ops.sn_imagenet.mixture.default
    return operator


_TO_IDENTIFIER = str.maketrans(".+-", "___")


@cache
def _addresses(dtype: torch.dtype) -> tuple[int, ...]:
    """Addresses that :func:`node` needs: :func:`_calls`, layer.cpp's forward and backward, and
    combine.cpp's update_running.
    """
    functions: list[Any] = [_layer_function(f"mixture_{name}") for name in ("forward", "backward")]
    functions.append(_function("update_running", statistics_dtype(dtype)))
    addresses = (ctypes.cast(function, _POINTER).value or 0 for function in functions)
    return ctypes.addressof(_calls(dtype)), *addresses


@lru_cache(maxsize=4096)
def _node_arguments(
    layout: Layout, dtype: torch.dtype, relu: bool, momentum: float | None, unbias: float
) -> Tensor:
    """node.cpp's struct Layer as int64. ``momentum``: None to leave running statistics alone."""
    sizes = layout.size, layout.replicas, layout.count, layout.member_at.get("bn", 0)
    flags = relu, momentum is not None
    packed = struct.pack(
        "=10q3d", *sizes, *flags, *_addresses(dtype), layout.eps, momentum or 0.0, unbias
    )
    return torch.cat([torch.frombuffer(bytearray(packed), dtype=torch.int64), layout.numbers])


class CppTables(ClosedForm):
    """Plain loops over a few thousand numbers, without the overhead of operators.

    If ranks do not share statistics, forward is one call and backward is another. If :func:`node`
    can be built too, backward runs without Python.
    """

    kernels = CPP

    @staticmethod
    def available() -> bool:
        return all(load_library(source, otherwise=OTHERWISE) for source in (SOURCE, LAYER))

    def apply(
        self,
        x: Tensor,
        residual: Tensor | None,
        kernels: Backend,
        relu: bool,
        parameters: Sequence[Tensor | None],
    ) -> Tensor:
        operator = None if self.group is not None else node()
        if operator is None:
            return super().apply(x, residual, kernels, relu, parameters)
        if self.update is None:
            running, momentum, unbias = self.stored or (None, None), None, 0.0
        else:
            running, momentum, unbias = self.update
            momentum = float(momentum)
        numbers = _node_arguments(self.layout, x.dtype, relu, momentum, unbias)
        y, self.buffer = operator(x, residual, *self.parameters, *running, numbers)
        return y

    def output(
        self,
        x: Tensor,
        residual: Tensor | None,
        kernels: Backend,
        relu: bool,
        differentiable: bool,
    ) -> Tensor:
        if self.group is not None:
            return super().output(x, residual, kernels, relu, differentiable)
        layout = self.layout
        self.buffer = x.new_empty(layout.size, dtype=statistics_dtype(x.dtype))
        y = torch.empty_like(x)
        stored = self.stored or (None, None)
        _layer_function("mixture_forward")(
            _calls(x.dtype),
            layout.numbers.data_ptr(),
            *map(pointer, (x, residual, y, self.buffer, *stored, *self.parameters)),
            layout.eps,
            relu,
            self.buffer.itemsize,
            *kernel_sizes(x),
        )
        if self.update is not None:
            self.update_running(*self.update)
        return y

    def gradients(
        self,
        grad: Tensor,
        x: Tensor,
        y: Tensor | None,
        kernels: Backend,
        relu: bool,
        want_x: bool,
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor, Sequence[Tensor | None]]:
        if self.group is not None:
            return super().gradients(grad, x, y, kernels, relu, want_x, wanted)
        layout, new = self.layout, self.buffer.new_empty
        grad = with_layout_of(grad, x)
        masked = None if y is None else torch.empty_like(x)
        dx = torch.empty_like(x) if want_x else None
        work = new(6 * layout.table + 2 * layout.replicas * layout.channels)
        parameters = self._new_gradients(wanted)
        _layer_function("mixture_backward")(
            _calls(x.dtype),
            layout.numbers.data_ptr(),
            *map(pointer, (grad, x, y, masked, dx, self.buffer, work)),
            self.stored is not None,
            *map(pointer, (self.parameters.weight, *parameters)),
            relu,
            self.buffer.itemsize,
            *kernel_sizes(x),
        )
        chosen = [g if want else None for g, want in zip(parameters, wanted, strict=True)]
        return dx, grad if masked is None else masked, chosen

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
        if not takes_parameters(self.buffer, running):
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
