"""The passes as compiled C++ loops, for CPUs with a C++ compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.norms.backends.compiler import load_library
from sn_imagenet.norms.backends.native import statistics_dtype

SUFFIX = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}

# Below this many elements a second thread costs more than it saves; PyTorch's own grain size.
GRAIN = 32768

_POINTER, _INDEX, _INT, _DOUBLE = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_double,
)
_SIZES = [_INDEX, _INDEX, _INDEX, _INT, _INT]
_SIGNATURES: dict[str, list[Any]] = {
    "moments": [_POINTER] * 3 + _SIZES,
    "affine": [_POINTER] * 5 + _SIZES,
    "gradient_sums": [_POINTER] * 5 + _SIZES,
    "input_gradient": [_POINTER] * 7 + _SIZES,
    "mixture_forward": [
        *[_POINTER] * 3,
        _INT,
        *[_POINTER] * 6,
        _DOUBLE,
        *[_POINTER] * 6,
        *[_INDEX] * 4,
    ],
    "mixture_backward": [*[_POINTER] * 5, _INT, _INT, *[_POINTER] * 12, *[_INDEX] * 5],
    "update_running": [*[_POINTER] * 4, _DOUBLE, _DOUBLE, _INDEX],
}


@cache
def kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The compiled function ``name`` for activations (or, for tables, tables) of ``dtype``."""
    library = load_library()
    assert library is not None
    function = getattr(library, f"{name}_{SUFFIX[dtype]}")
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def supports(x: Tensor) -> bool:
    """Whether the compiled passes take ``x``; builds them on the first call for a CPU tensor."""
    return (
        x.device.type == "cpu"
        and x.dtype in SUFFIX
        and type(x) in (Tensor, torch.nn.Parameter)
        and load_library() is not None
    )


def layout(x: Tensor) -> tuple[int, int, int, int, int]:
    """The sizes that every pass takes: N, C, HW, whether channels are innermost, threads."""
    n, channels, height, width = x.shape
    area = height * width
    # A 1x1 map is both; as [N, C] its rows are long.
    columns = area == 1 or not x.is_contiguous()
    threads = torch.get_num_threads() if x.numel() > GRAIN else 1
    return n, channels, area, columns, threads


def like(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` in the memory layout of ``x``."""
    if x.is_contiguous():
        return grad.contiguous()
    return grad.contiguous(memory_format=torch.channels_last)


class CppBackend:
    """One loop per pass, both memory layouts, vectorised, over PyTorch's number of threads.

    Contiguous maps are centred on their exact mean in a second look that the cache serves;
    channels_last ones chunk by chunk, joined by Chan et al.'s update.
    """

    name = "cpp"

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.new_empty(x.shape[:2], dtype=statistics_dtype(x.dtype))
        var = torch.empty_like(mean)
        pointers = x.data_ptr(), mean.data_ptr(), var.data_ptr()
        kernel("moments", x.dtype)(*pointers, *layout(x))
        return mean, var

    def affine(self, x: Tensor, center: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = torch.empty_like(x)
        tables = [table.contiguous() for table in (center, scale, shift)]
        pointers = x.data_ptr(), *(table.data_ptr() for table in tables), y.data_ptr()
        kernel("affine", x.dtype)(*pointers, *layout(x))
        return y

    def gradient_sums(self, grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        grad = like(grad, x)
        sums, products = torch.empty_like(mean), torch.empty_like(mean)
        pointers = (t.data_ptr() for t in (grad, x, mean, sums, products))
        kernel("gradient_sums", x.dtype)(*pointers, *layout(x))
        return sums, products

    def input_gradient(
        self, grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
    ) -> Tensor:
        grad, dx = like(grad, x), torch.empty_like(x)
        tables = [table.contiguous() for table in (mean, a, b, c)]
        pointers = (t.data_ptr() for t in (grad, x, *tables, dx))
        kernel("input_gradient", x.dtype)(*pointers, *layout(x))
        return dx
