"""The kernels over the activation: one class per backend.

A backend is independent of the method. It computes [N, C] tables from x, applies [N, C] tables to
x, and does the same for the gradient. Statistics are fp32 for fp16 and bf16 activations, and of the
activation's dtype otherwise.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sn_imagenet.norms.kernels import cpp, triton_backend
from sn_imagenet.norms.kernels.cpp import CppBackend
from sn_imagenet.norms.kernels.native import NativeBackend
from sn_imagenet.norms.kernels.tables import (
    Coefficients,
    NotDifferentiable,
    formula,
    statistics_dtype,
    with_layout_of,
)
from sn_imagenet.norms.kernels.triton_backend import TritonBackend


class Backend(Protocol):
    """Four kernels over an activation of shape [N, C, H, W].

    Every table is [N, C]. ``tables`` [3, N, C] are center, scale and shift, contiguous. Gradients
    and residuals have x's shape, dtype and memory format.
    """

    name: str

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over (H, W)."""

    def affine(
        self, x: Tensor, tables: Tensor, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        """(x - center) * scale + shift, plus the residual, then the ReLU; x's dtype and layout."""

    def gradient_sums(
        self, grad: Tensor, x: Tensor, mean: Tensor, tables: Tensor, relu: bool, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sums over (H, W) of g and of g * (x - mean), [2, N, C].

        g is ``grad``. After a ReLU it is 0 where the affine map was not positive: the sign is
        recomputed if ``relu``, or read from the output ``y``. Then the second return value, the
        gradient for :meth:`input_gradient`, is g too; otherwise it is ``grad``.
        """

    def input_gradient(
        self, grad: Tensor, x: Tensor, mean: Tensor, tables: Tensor, line: Tensor, relu: bool
    ) -> Tensor:
        """scale * g + b * (x - mean) + c, for ``line`` = (b, c) [2, N, C]; g as above."""


CPP = CppBackend()
NATIVE = NativeBackend()
TRITON = TritonBackend()
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (CPP, NATIVE, TRITON)}


def select_backend(x: Tensor, name: str | None = None) -> Backend:
    """The backend for ``x``, or the backend called ``name``.

    Raises:
        ValueError: no backend has this name, or it cannot take ``x``.
    """
    if name is None:
        if x.is_cuda:
            return TRITON if triton_backend.supports(x) else NATIVE
        return CPP if cpp.supports(x) else NATIVE
    if name not in BACKENDS:
        raise ValueError(
            f"backend={name!r}: expected one of {', '.join(sorted([*BACKENDS, 'formula']))}"
        )
    if name == CPP.name and not cpp.supports(x):
        raise ValueError(
            f"backend='cpp' cannot take a {x.dtype} tensor on {x.device}: it needs a C++ compiler "
            "and an fp32, fp64 or bf16 tensor on the CPU"
        )
    if name == TRITON.name and not triton_backend.supports(x):
        raise ValueError(
            f"backend='triton' cannot take a {x.dtype} tensor on {x.device}: it needs Triton and "
            "a CUDA device (or TRITON_INTERPRET=1)"
        )
    return BACKENDS[name]


def kernels_for(x: Tensor, name: str | None) -> Backend | None:
    """:func:`select_backend`, or None for the formula.

    The formula is used if it is selected, and while PyTorch operators are being recorded or
    transformed, which would miss the kernels: by torch.compile (which fuses the formula by itself),
    jit.trace, make_fx, torch.func's transforms or forward-mode differentiation.
    """
    transformed = (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or forward_ad._current_level >= 0
    )
    return None if transformed or name == "formula" else select_backend(x, name)


def as_dense(x: Tensor) -> Tensor:
    """``x`` if it is contiguous or channels_last, otherwise a contiguous copy."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()
