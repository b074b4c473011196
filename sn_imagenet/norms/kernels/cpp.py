"""The kernels as compiled C++ loops, for CPUs with a C++ compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.native import load_library
from sn_imagenet.norms.kernels.tables import Affine, ReluMask, statistics_dtype, with_layout_of

SOURCE = Path(__file__).with_name("kernels.cpp")
OTHERWISE = "normalization uses PyTorch's own operators on the CPU"
SUFFIX = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}

# With fewer elements a second thread costs more than it saves; PyTorch's own grain size.
GRAIN = 32768

_POINTER, _INDEX, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIZES = [_INDEX, _INDEX, _INDEX, _INT, _INT]
_SIGNATURES: dict[str, list[Any]] = {
    "moments": [_POINTER] * 3 + _SIZES,
    "affine": [*[_POINTER] * 6, _INT, *_SIZES],
    "gradient_sums": [_POINTER] * 10 + _SIZES,
    "input_gradient": [_POINTER] * 9 + _SIZES,
}


@cache
def kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The compiled function ``name`` for activations of ``dtype``."""
    library = load_library(SOURCE, otherwise=OTHERWISE)
    assert library is not None
    function = getattr(library, f"{name}_{SUFFIX[dtype]}")
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


def supports(x: Tensor) -> bool:
    """Whether the compiled kernels take ``x``; builds them on the first call for a CPU tensor."""
    return (
        x.device.type == "cpu"
        and x.dtype in SUFFIX
        and type(x) in (Tensor, torch.nn.Parameter)
        and load_library(SOURCE, otherwise=OTHERWISE) is not None
    )


def kernel_sizes(x: Tensor) -> tuple[int, int, int, int, int]:
    """The sizes that every kernel takes: N, C, HW, whether channels are innermost, threads."""
    n, channels, height, width = x.shape
    area = height * width
    # A 1x1 map has both layouts; as [N, C] it has long rows.
    columns = area == 1 or not x.is_contiguous()
    threads = torch.get_num_threads() if x.numel() > GRAIN else 1
    return n, channels, area, columns, threads


def pointer(tensor: Tensor | None) -> int | None:
    """The tensor's address for the compiled functions; None is a null pointer."""
    return None if tensor is None else tensor.data_ptr()


class CppBackend:
    """One vectorized loop per kernel and memory layout, over PyTorch's number of threads.

    Contiguous maps are centered on their exact mean in a second read, served by the cache.
    channels_last maps are centered chunk by chunk and merged by Chan et al.'s update.
    """

    name = "cpp"

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.new_empty(x.shape[:2], dtype=statistics_dtype(x.dtype))
        var = torch.empty_like(mean)
        self.moments_into(x, mean, var)
        return mean, var

    def moments_into(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        """Write the moments to ``mean`` and ``var``, both contiguous."""
        kernel("moments", x.dtype)(x.data_ptr(), mean.data_ptr(), var.data_ptr(), *kernel_sizes(x))

    def affine(
        self, x: Tensor, tables: Affine, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        y = torch.empty_like(x)
        center, scale, shift = (table.contiguous() for table in tables)
        inputs = (pointer(t) for t in (x, center, scale, shift, residual, y))
        kernel("affine", x.dtype)(*inputs, relu, *kernel_sizes(x))
        return y

    def gradient_sums(
        self, grad: Tensor, x: Tensor, mean: Tensor, relu_mask: ReluMask = None
    ) -> tuple[Tensor, Tensor]:
        grad = with_layout_of(grad, x)
        sums_and_products = mean.new_empty((2, *x.shape[:2]))
        sums, products = sums_and_products.unbind()
        center, scale, shift = _mask_tables(relu_mask)
        y = relu_mask if isinstance(relu_mask, Tensor) else None
        masked = None if y is None else torch.empty_like(x)
        tables = (grad, x, mean, sums, products, center, scale, shift, y, masked)
        kernel("gradient_sums", x.dtype)(*map(pointer, tables), *kernel_sizes(x))
        return sums_and_products, grad if masked is None else masked

    def input_gradient(
        self,
        grad: Tensor,
        x: Tensor,
        mean: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        relu_mask: Affine | None = None,
    ) -> Tensor:
        grad, dx = with_layout_of(grad, x), torch.empty_like(x)
        mean, a, b, c = (table.contiguous() for table in (mean, a, b, c))
        center, _, shift = _mask_tables(relu_mask)
        pointers = map(pointer, (grad, x, mean, a, b, c, center, shift, dx))
        kernel("input_gradient", x.dtype)(*pointers, *kernel_sizes(x))
        return dx


def _mask_tables(relu_mask: ReluMask) -> tuple[Tensor | None, ...]:
    if isinstance(relu_mask, Affine):
        return tuple(table.contiguous() for table in relu_mask)
    return None, None, None
