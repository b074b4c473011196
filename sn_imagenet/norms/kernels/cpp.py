"""The kernels, and whole mixture layers, as compiled operators, for CPUs with a C++ compiler.

``torch.ops.sn_imagenet`` has them once :func:`is_built` has built operators.cpp.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.native import load_library
from sn_imagenet.norms.kernels.tables import NotDifferentiable

SOURCE = Path(__file__).with_name("operators.cpp")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
MEMBERS = {"in": 0, "ln": 1, "bn": 2, "gn": 3}
"""The members of a mixture and their numbers in combine.h."""
_BUILD_LOCK = threading.Lock()
_LIBRARY = torch.library.Library("sn_imagenet", "IMPL")


@cache
def is_built() -> bool:
    """Whether the operators exist; the first call builds and registers them."""
    include = Path(torch.__file__).with_name("include")
    version = torch.__version__.translate(str.maketrans(".+-", "___"))
    with _BUILD_LOCK:  # threads that call this first together
        library = load_library(
            SOURCE,
            *("-std=c++20", f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"),
            *("-Wl,--no-as-needed", f"-L{include.with_name('lib')}", "-ltorch_cpu", "-lc10"),
            f"-DBUILT_FOR_TORCH_{version}",
            otherwise="normalization uses PyTorch's own operators on the CPU",
        )
        if library is not None and not hasattr(torch.ops.sn_imagenet, "mixture"):
            library.register_operators()
            _LIBRARY.impl("mixture_backward", _backward_with_graph, "Autograd")
    return library is not None


def supports(x: Tensor) -> bool:
    """Whether the compiled kernels take ``x``; builds them on the first call for a CPU tensor."""
    return x.is_cpu and x.dtype in DTYPES and type(x) in (Tensor, torch.nn.Parameter) and is_built()


class CppBackend:
    """One vectorized loop per kernel and memory layout, over PyTorch's number of threads.

    Contiguous maps are centered on their exact mean in a second read, served by the cache.
    channels_last maps are read once, each chunk of pixels centered on the mean of those before it.
    """

    name = "cpp"

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = torch.ops.sn_imagenet.moments(x)
        return mean, var

    def affine(
        self, x: Tensor, tables: Tensor, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        y: Tensor = torch.ops.sn_imagenet.affine(x, tables, relu, residual)
        return y

    def gradient_sums(
        self, grad: Tensor, x: Tensor, mean: Tensor, tables: Tensor, relu: bool, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sums, masked = torch.ops.sn_imagenet.gradient_sums(grad, x, mean, tables, relu, y)
        return sums, grad if y is None else masked

    def input_gradient(
        self, grad: Tensor, x: Tensor, mean: Tensor, tables: Tensor, line: Tensor, relu: bool
    ) -> Tensor:
        dx: Tensor = torch.ops.sn_imagenet.input_gradient(grad, x, mean, tables, line, relu)
        return dx


def _backward_with_graph(*arguments: Any) -> tuple[Tensor | None, ...]:
    """``mixture_backward`` with create_graph=True."""
    with torch._C._AutoDispatchBelowAutograd():
        gradients = torch.ops.sn_imagenet.mixture_backward(*arguments)
    results: tuple[Tensor | None, ...] = NotDifferentiable.apply(gradients, *arguments)
    return results
