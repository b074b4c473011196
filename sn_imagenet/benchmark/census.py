"""The quantities of the paper's Table 1, counted from the modules themselves.

Each method's ``combine`` is called once on the moments of a random batch. The statistics it
estimates are the kinds that it reads and how many distinct numbers they hold. Parameters are the
learned ones; hyper-parameters are the constructor's numbers and sets. The complexity is that of the
operators that run to compute the statistics.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sn_imagenet.norms import MomentNorm2d, Moments, Statistics
from sn_imagenet.norms.kernels import select_backend
from sn_imagenet.norms.methods import METHODS

SIZE = (32, 64, 56, 56)
"""N, C, H, W of the numbers: a layer of ResNet-50 at 32 samples per GPU."""

# The paper's symbols for the modules' names.
PARAMETERS = {"weight": "γ", "bias": "β", "mean_weight": "w", "var_weight": "w"}
PARAMETERS |= {"g": "γ", "rho": "ρ", "tau": "τ"}
ARGUMENTS = {
    "momentum": "p",
    "eps": "ϵ",
    "num_groups": "g",
    "r_max": "r",
    "d_max": "d",
    "omega": "Ω",
}
# Numbers in one table of each kind, Eq. (5); a method has a table of means and one of variances.
_TABLE_SIZES = {"bn": "C", "ln": "N", "in": "NC", "gn": "gN"}


@dataclass(frozen=True)
class Census:
    """One row of Table 1.

    Attributes:
        params: symbols of the learned parameters.
        parameters: their number at ``size``; ``parameters_formula``: the polynomial in C.
        hyperparameters: symbols of the constructor arguments that have an effect.
        statistics: symbols of the estimated statistics and of the moving averages (primed).
        members: the kinds of statistics combined, such as bn or ln.
        count: distinct statistics at ``size``; ``count_formula``: the polynomial in N, C and g.
        exponents: of N, C and HW in the number of elements that operators read and write to
            estimate the statistics, or None without any. ``work``: that number at ``size``.
    """

    method: str
    size: tuple[int, int, int, int]
    params: tuple[str, ...]
    parameters: int
    parameters_formula: str
    hyperparameters: tuple[str, ...]
    statistics: tuple[str, ...]
    members: tuple[str, ...]
    count: int
    count_formula: str
    exponents: dict[str, float] | None
    work: int


def census(size: tuple[int, int, int, int] = SIZE) -> list[Census]:
    """Count every built-in method at ``size`` = [N, C, H, W], and how the work scales from there.

    Raises:
        ValueError: a size is below 2, where statistics coincide.
    """
    if len(size) != 4 or min(size) < 2:
        raise ValueError(f"size={size}: expected N, C, H, W of at least 2 each")
    return [_count(name, method, size) for name, method in METHODS.items()]


def _count(name: str, method: type[MomentNorm2d], size: tuple[int, int, int, int]) -> Census:
    n, channels, height, width = size
    layer = method(channels)
    learned = _learned(layer)
    parameters = sum(learned.values())
    per_channel = (sum(_learned(method(2 * channels)).values()) - parameters) // channels
    factor = "" if per_channel == 1 else per_channel
    terms = [f"{factor}C" if per_channel else "", parameters - per_channel * channels or ""]
    moments = _RecordedMoments(n, channels)
    layer.double().combine(moments)
    sizes = sorted((_TABLE_SIZES[kind] for kind in moments.tables), key=lambda t: (len(t), t))
    symbols = ["μ", "σ"] if len(sizes) == 1 else ["μ_k", "σ_k"] if sizes else []
    stored = ["μ′", "σ′"] if layer.running_mean is not None else []
    work = _work(method, size) if sizes else 0
    doubled = {"N": (2 * n, *size[1:]), "C": (n, 2 * channels, height, width)}
    doubled["HW"] = (n, channels, 2 * height, width)
    return Census(
        name,
        size,
        tuple(dict.fromkeys(PARAMETERS.get(n, n) for n in learned)),
        parameters,
        " + ".join(str(term) for term in terms if term) or "0",
        tuple(ARGUMENTS.get(n, n) for n in _hyperparameters(method, layer, moments.tables)),
        (*symbols, *stored),
        tuple(moments.tables),
        sum(_distinct([table[place] for table in moments.tables.values()]) for place in (0, 1)),
        " + ".join(f"2{term}" for term in sizes) or "0",
        {at: math.log2(_work(method, to) / work) for at, to in doubled.items()} if work else None,
        work,
    )


def _learned(layer: MomentNorm2d) -> dict[str, int]:
    """With the activation that a method includes, and the g of weight normalization, which is a
    parameter of the convolution."""
    if layer.replaces_relu:
        layer.relu = True
    of_weights = {"g": layer.num_features} if layer.normalizes_weights else {}
    own = {name: p.numel() for name, p in layer.named_parameters() if p.requires_grad}
    return {**of_weights, **own}


class _RecordedMoments(Moments):
    """Random float64 moments that record which statistics a ``combine`` function reads."""

    def __init__(self, samples: int, channels: int) -> None:
        generator = torch.Generator().manual_seed(0)
        mean, var = torch.rand(2, samples, channels, dtype=torch.float64, generator=generator)
        super().__init__(mean, var)
        self.tables: dict[str, Statistics] = {}

    def instance(self) -> Statistics:
        return self.tables.setdefault("in", super().instance())

    def layer(self) -> Statistics:
        return self.tables.setdefault("ln", super().layer())

    def batch(self) -> Statistics:
        return self.tables.setdefault("bn", super().batch())

    def group(self, channel_groups: int) -> Statistics:
        return self.tables.setdefault("gn", super().group(channel_groups))


def _distinct(tables: Sequence[Tensor]) -> int:
    """How many numbers differ by more than rounding; 0 without tables."""
    if not tables:
        return 0
    ordered = torch.cat([table.flatten() for table in tables]).sort().values
    return 1 + int((ordered.diff() > 1e-12 * ordered.abs().max()).sum())


def _hyperparameters(
    method: type[MomentNorm2d], layer: MomentNorm2d, members: Mapping[str, Statistics]
) -> list[str]:
    """Constructor arguments whose value is a choice. Arguments of the base class that the method
    does not use are left out: momentum without moving averages, groups without group norm."""
    defaults = {name: p.default for name, p in inspect.signature(method).parameters.items()}
    names = [
        name
        for name, default in defaults.items()
        if isinstance(default, int | float | tuple) and not isinstance(default, bool)
        if name != "momentum" or layer.track_running_stats
        if name != "num_groups" or "gn" in members
        if name != "eps" or layer.eps  # 0 where nothing is divided by a standard deviation
        if name != "instance_correction"  # a switch to the authors' divisor, not a number to tune
    ]
    return sorted(names, key=lambda name: name != "momentum")  # the paper's order: p first


class _Work(TorchDispatchMode):
    """Counts the elements of every tensor that an operator reads or writes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
            self.elements += sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
        return result


@torch.no_grad()
def _work(method: type[MomentNorm2d], size: Sequence[int]) -> int:
    """Elements that PyTorch's operators read and write to compute the statistics."""
    layer = method(size[1], device="meta")
    x = torch.empty(*size, device="meta")  # shapes only: nothing is computed
    with _Work() as mode:
        layer.combine(Moments(*select_backend(x, "native").moments(x)))
    return mode.elements
