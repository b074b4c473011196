"""What Table 1 of the paper counts, taken from the modules themselves.

Nothing here knows a method: each is called at many sizes and what it does is counted. Parameters
are those that learn; a hyper-parameter is a constructor argument that changes what the layer
computes; statistics are the distinct numbers among the tables that its pool function asks for;
the complexity is that of the operators that run until they are there.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sn_imagenet.norms.batch_variants import BatchRenorm2d, FrozenBatchNorm2d, SyncBatchNorm2d
from sn_imagenet.norms.layers import (
    BatchNorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    PooledNorm2d,
)
from sn_imagenet.norms.moments import Moments, Statistics
from sn_imagenet.norms.switch_norm import SwitchNorm2d

Factory = Callable[..., PooledNorm2d]
"""A layer from its number of channels and keyword arguments."""

METHODS: dict[str, Factory] = {
    "bn": BatchNorm2d,
    "in": InstanceNorm2d,
    "ln": LayerNorm2d,
    "gn": GroupNorm2d,
    "brn": BatchRenorm2d,
    "sn": SwitchNorm2d,
    "sync_bn": SyncBatchNorm2d,
    "frozen_bn": FrozenBatchNorm2d,
}

SIZE = (32, 64, 56, 56)
"""N, C, H, W at which numbers are given: a layer of ResNet-50 at 32 samples per GPU."""

# How the paper writes what the modules call otherwise; a name of one's own stands for itself.
PARAMETERS = {"weight": "γ", "bias": "β", "mean_weight": "w", "var_weight": "w"}
ARGUMENTS = {
    "momentum": "p",
    "eps": "ϵ",
    "num_groups": "g",
    "r_max": "r",
    "d_max": "d",
    "omega": "Ω",
}

# Two levels of each size, which decide a polynomial of first degree in each, and one more point
# that it must meet. g divides C in all of them.
_LEVELS = {"g": (2, 3), "N": (2, 5), "C": (12, 24), "H": (3, 4), "W": (3, 5)}
_HELD_OUT = {"g": 6, "N": 3, "C": 36, "H": 2, "W": 7}
# In the middle of batch renorm's schedules, where each of their ends has its effect.
_STEP = 15_000


@dataclass(frozen=True)
class Census:
    """One row of Table 1.

    Attributes:
        params: symbols of what is learned.
        parameters: how many at ``size``; ``parameters_formula``: the polynomial in C and g.
        hyperparameters: symbols of the constructor arguments that have an effect.
        statistics: symbols of what is estimated, and of the moving averages (primed).
        members: the kinds of statistics pooled, such as batch or layer.
        count: distinct statistics at ``size``; ``count_formula``: the polynomial in N, C, H, W, g.
        exponents: of N, C and HW in the elements that operators read and write to estimate them;
            None where nothing is estimated. ``work``: that number of elements at ``size``.
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


def census(
    methods: Mapping[str, Factory] = METHODS, size: tuple[int, int, int, int] = SIZE
) -> list[Census]:
    """Count every method; ``size`` is the [N, C, H, W] of the numbers and of the scaling.

    Raises:
        ValueError: a size below 2, at which statistics coincide; a count that is no polynomial.
    """
    if len(size) != 4 or min(size) < 2:
        raise ValueError(f"size={size}: expected N, C, H, W of at least 2 each")
    return [_count(name, factory, size) for name, factory in methods.items()]


def _count(name: str, factory: Factory, size: tuple[int, int, int, int]) -> Census:
    layer = factory(size[1])
    learned = {n: p.numel() for n, p in layer.named_parameters() if p.requires_grad}
    tables = pooled_tables(factory, size)
    symbols = ["μ", "σ"] if len(tables) == 1 else ["μ_k", "σ_k"] if tables else []
    stored = ["μ′", "σ′"] if layer.running_mean is not None else []
    work = _work(factory, size)
    return Census(
        name,
        size,
        tuple(dict.fromkeys(PARAMETERS.get(n, n) for n in learned)),
        sum(learned.values()),
        polynomial(lambda **at: _learned(factory, at)),
        tuple(ARGUMENTS.get(n, n) for n in _effective_arguments(factory)),
        (*symbols, *stored),
        tuple(tables),
        _distinct(tables),
        polynomial(lambda **at: _distinct(pooled_tables(*_at(factory, at)))),
        _exponents(factory, size, work) if work else None,
        work,
    )


def _at(factory: Factory, at: Mapping[str, int]) -> tuple[Factory, tuple[int, int, int, int]]:
    def sized(channels: int) -> PooledNorm2d:
        arguments = inspect.signature(factory).parameters
        return factory(channels, **({"num_groups": at["g"]} if "num_groups" in arguments else {}))

    return sized, (at["N"], at["C"], at["H"], at["W"])


def _learned(factory: Factory, at: Mapping[str, int]) -> int:
    sized, (_, channels, _, _) = _at(factory, at)
    return sum(p.numel() for p in sized(channels).parameters() if p.requires_grad)


class _Asked(Moments):
    """Moments that note which statistics a pool function asks for."""

    def __init__(self, moments: Moments, noted: dict[str, Statistics]) -> None:
        super().__init__(
            moments.mean.flatten(0, 1), moments.var.flatten(0, 1), moments.mean.shape[1]
        )
        self._noted = noted

    def instance(self) -> Statistics:
        return self._noted.setdefault("in", super().instance())

    def layer(self) -> Statistics:
        return self._noted.setdefault("ln", super().layer())

    def batch(self) -> Statistics:
        return self._noted.setdefault("bn", super().batch())

    def group(self, channel_groups: int) -> Statistics:
        return self._noted.setdefault("gn", super().group(channel_groups))


def pooled_tables(factory: Factory, size: Sequence[int]) -> dict[str, Statistics]:
    """What one forward pass in training pools from a random [N, C, H, W], by kind.

    A pool function that uses the moments in no way that :class:`Moments` offers has one kind,
    "own": the tables that it returns. A layer that never pools has none.
    """
    tables: dict[str, Statistics] = {}
    layer = _spied(factory(size[1]).double(), lambda _, noted: tables.update(noted))
    generator = torch.Generator().manual_seed(0)
    layer(torch.randn(*size, dtype=torch.float64, generator=generator))
    return tables


def _spied(
    layer: PooledNorm2d, then: Callable[[Statistics, dict[str, Statistics]], None]
) -> PooledNorm2d:
    """``layer`` on PyTorch's operators, calling ``then`` when its statistics are there."""
    pool = layer.pool

    def spy(moments: Moments) -> Statistics:
        noted: dict[str, Statistics] = {}
        result = pool(_Asked(moments, noted))
        then(result, noted or {"own": result})
        return result

    setattr(layer, "pool", spy)  # noqa: B010
    layer.backend = "native"
    return layer.train().requires_grad_(False)


def _distinct(tables: Mapping[str, Statistics]) -> int:
    """The numbers that differ by more than rounding, means and variances apart."""
    return sum(
        _values(torch.cat([table[place].flatten() for table in tables.values()]))
        for place in (0, 1)
        if tables
    )


def _values(table: Tensor) -> int:
    ordered = table.double().sort().values
    return 1 + int((ordered.diff() > 1e-12 * ordered.abs().max()).sum())


def _effective_arguments(factory: Factory) -> list[str]:
    """Constructor arguments with a value to choose whose change changes output or state."""
    changed = {
        name: _another(parameter.default)
        for name, parameter in inspect.signature(factory).parameters.items()
    }
    as_it_is = _behaviour(factory, {})
    found = [
        name
        for name, value in changed.items()
        if value is not None and not _same(as_it_is, _behaviour(factory, {name: value}))
    ]
    # The paper's order: p first.
    return sorted(found, key=lambda name: name != "momentum")


def _another(default: Any) -> Any:
    """Another value for an argument; None for switches and what has no value to choose."""
    if isinstance(default, bool):
        return None
    if isinstance(default, int | float):
        return default * 2
    return default[:-1] if isinstance(default, tuple) and len(default) > 1 else None


def _behaviour(factory: Factory, arguments: Mapping[str, Any]) -> list[Tensor]:
    """Output of a training and an evaluation pass, and the buffers after them."""
    layer = factory(64, **arguments).double()
    layer.backend = "native"
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(_STEP)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 3, 3, dtype=torch.float64, generator=generator)
    x = 3 * x * torch.linspace(0.5, 2, 64).view(-1, 1, 1) + torch.linspace(-4, 4, 64).view(-1, 1, 1)
    with torch.no_grad():
        return [layer(x), layer.eval()(x), *(b.clone() for b in layer.buffers())]


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def polynomial(count: Callable[..., int]) -> str:
    """``count(g=, N=, C=, H=, W=)`` as a polynomial, such as "2C + 2N + 2NC".

    Raises:
        ValueError: it is none of first degree in each size with integer coefficients.
    """
    points = [
        dict(zip(_LEVELS, values, strict=True)) for values in itertools.product(*_LEVELS.values())
    ]
    monomials = [
        names for k in range(len(_LEVELS) + 1) for names in itertools.combinations(_LEVELS, k)
    ]

    def row(point: Mapping[str, int]) -> list[float]:
        return [float(math.prod(point[name] for name in names)) for names in monomials]

    counts = [count(**point) for point in points]
    system = torch.tensor([row(point) for point in points], dtype=torch.float64)
    solution = torch.linalg.solve(system, torch.tensor(counts, dtype=torch.float64))
    coefficients = [round(c) for c in solution.tolist()]
    met = [*zip(points, counts, strict=True), (_HELD_OUT, count(**_HELD_OUT))]
    for point, actual in met:
        if sum(c * v for c, v in zip(coefficients, row(point), strict=True)) != actual:
            raise ValueError(f"a count of {actual} at {point}: no polynomial in {list(_LEVELS)}")
    terms = {"".join(names): c for names, c in zip(monomials, coefficients, strict=True) if c}
    ordered = sorted(terms.items(), key=lambda term: (not term[0], len(term[0]), term[0]))
    return " + ".join(names if names and c == 1 else f"{c}{names}" for names, c in ordered) or "0"


class _Work(TorchDispatchMode):
    """Counts the elements of every tensor that an operator reads or writes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for value in (args, kwargs, result):
                leaves = torch.utils._pytree.tree_leaves(value)
                self.elements += sum(v.numel() for v in leaves if isinstance(v, Tensor))
        return result


def _work(factory: Factory, size: Sequence[int]) -> int:
    """Elements read and written until the statistics to normalise with are there."""
    counts = [0]
    mode = _Work()
    layer: nn.Module = _spied(
        factory(size[1], device="meta"), lambda *_: counts.append(mode.elements)
    )
    x = torch.empty(*size, device="meta")  # sizes without values: nothing is computed
    with mode:
        layer(x)
    return counts[-1]


def _exponents(factory: Factory, size: Sequence[int], work: int) -> dict[str, float]:
    """log2 of the growth of the work as N, C and HW double."""
    n, c, h, w = size
    doubled = {"N": (2 * n, c, h, w), "C": (n, 2 * c, h, w), "HW": (n, c, 2 * h, w)}
    return {name: math.log2(_work(factory, to) / work) for name, to in doubled.items()}
