"""The kernels, and whole mixture layers, as compiled operators, for CPUs with a C++ compiler.

``torch.ops.sn_imagenet`` has them once :func:`is_built` has built operators.cpp.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sn_imagenet.native import load_library
from sn_imagenet.norms.kernels.tables import Affine, ReluMask, formula, with_layout_of
from sn_imagenet.norms.moments import Moments

SOURCE = Path(__file__).with_name("operators.cpp")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
OTHERWISE = "normalization uses PyTorch's own operators on the CPU"
MEMBERS = ("in", "ln", "bn", "gn")
"""The members of a mixture, in the order of their numbers in combine.h."""
_BUILD_LOCK = threading.Lock()
_LIBRARY = torch.library.Library("sn_imagenet", "IMPL")


@cache
def numbers_of(omega: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the members of ``omega``, for the operator ``mixture``."""
    return tuple(MEMBERS.index(member) for member in omega)


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
            otherwise=OTHERWISE,
        )
        if library is not None and not hasattr(torch.ops.sn_imagenet, "mixture"):
            library.register_operators()
            _LIBRARY.impl("mixture_backward", _differentiable_backward, "Autograd")
    return library is not None


def supports(x: Tensor) -> bool:
    """Whether the compiled kernels take ``x``; builds them on the first call for a CPU tensor."""
    return x.is_cpu and x.dtype in DTYPES and type(x) in (Tensor, torch.nn.Parameter) and is_built()


class CppBackend:
    """One vectorized loop per kernel and memory layout, over PyTorch's number of threads.

    Contiguous maps are centered on their exact mean in a second read, served by the cache.
    channels_last maps are centered chunk by chunk and merged by Chan et al.'s update.
    """

    name = "cpp"

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = torch.ops.sn_imagenet.moments(x)
        return mean, var

    def affine(
        self, x: Tensor, tables: Affine, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        y: Tensor = torch.ops.sn_imagenet.affine(x, torch.stack(tables), residual, relu)
        return y

    def gradient_sums(
        self, grad: Tensor, x: Tensor, mean: Tensor, relu_mask: ReluMask = None
    ) -> tuple[Tensor, Tensor]:
        grad = with_layout_of(grad, x)
        tables = torch.stack(relu_mask) if isinstance(relu_mask, Affine) else None
        y = relu_mask if isinstance(relu_mask, Tensor) else None
        sums, masked = torch.ops.sn_imagenet.gradient_sums(grad, x, mean, tables, y)
        return sums, grad if y is None else masked

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
        mask = () if relu_mask is None else (relu_mask.center, relu_mask.shift)
        tables = torch.stack((mean, a, b, c, *mask))
        grad = with_layout_of(grad, x)
        dx: Tensor = torch.ops.sn_imagenet.input_gradient(grad, x, tables, bool(mask))
        return dx


class MixtureStatistics(NamedTuple):
    """BN's statistics in the tables of the operator ``mixture``, which end with them."""

    tables: Tensor
    replicas: int
    channels: int

    def batch(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of this batch, each [1, R, C]."""
        shape = (2, 1, self.replicas, self.channels)
        mean, var = self.tables[-2 * self.replicas * self.channels :].view(shape).unbind()
        return mean, var


def _differentiable_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, tables: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    """``mixture_backward`` under autograd, with create_graph=True: by autograd on the formula."""
    tensors = (x, *rest[:4])
    members, channel_groups, replicas, eps, relu, stored, _ = rest[4:]
    differentiated = [t for t in (grad, *tensors) if t is not None and t.requires_grad]
    if not (torch.is_grad_enabled() and differentiated):
        with torch._C._AutoDispatchBelowAutograd():
            results: tuple[Tensor | None, ...] = torch.ops.sn_imagenet.mixture_backward(
                grad, x, y, tables, *rest
            )
            return results
    # Views, since x may depend on the parameters, or a parameter on x.
    inputs = [t if t is None else t.view_as(t) for t in tensors]
    leaf, weight, bias, *logits = inputs
    assert leaf is not None

    def coefficients(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moments = Moments(mean, var, replicas)
        own = MixtureStatistics(tables, replicas, x.shape[1])
        batch = own.batch() if stored else moments.batch()
        omega = [MEMBERS[member] for member in members]
        statistics = moments.mixture(omega, channel_groups, batch, logits)
        return moments.coefficients(statistics, eps, weight, bias)

    masked = grad if y is None else torch.where(y <= 0, 0.0, grad)
    out = formula(leaf, coefficients, relu and y is None, None)
    chosen = [t for t in inputs if t is not None and t.requires_grad]
    # Empty if the residual alone needs a gradient.
    grads = torch.autograd.grad(out, chosen, masked, create_graph=True) if chosen else ()
    by_input = dict(zip(chosen, grads, strict=True))
    dx, *others = (None if t is None else by_input.get(t) for t in inputs)
    return dx, None if y is None else masked, *others
