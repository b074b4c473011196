"""Table 1's counts against the sizes of the statistics that the papers define."""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch
from torch import Tensor

from sn_imagenet.benchmark.census import ARGUMENTS, census
from sn_imagenet.norms import MomentNorm2d
from sn_imagenet.norms.methods import METHODS

SIZE = N, C, H, W = 4, 64, 5, 3
GROUPS = 32
STATISTICS = {
    "bn": 2 * C,
    "in": 2 * N * C,
    "ln": 2 * N,
    "gn": 2 * GROUPS * N,
    "brn": 2 * C,
    "sn": 2 * C + 2 * N + 2 * N * C,
    "sync_bn": 2 * C,
    "frozen_bn": 0,
    "ssn": 2 * C + 2 * N + 2 * N * C,
    "bin": 2 * C + 2 * N * C,
    "frn": 2 * N * C,
    "ebn": 2 * C,
    "mean_bn": 2 * C,
    "wn": 0,
}
PARAMETERS = dict.fromkeys(STATISTICS, 2 * C) | {"sn": 2 * C + 6, "frozen_bn": 0}
PARAMETERS |= {"ssn": 2 * C + 6, "bin": 3 * C, "frn": 3 * C, "mean_bn": C}


ROWS = {row.method: row for row in census(SIZE)}


@pytest.mark.parametrize("name", STATISTICS)
def test_counts_of_every_method(name: str) -> None:
    row = ROWS[name]
    assert row.size == SIZE
    assert row.count == STATISTICS[name]
    assert row.parameters == PARAMETERS[name]


def test_the_formulas_hold_at_other_sizes() -> None:
    sizes = {"N": 7, "C": 96, "H": 3, "W": 2, "g": GROUPS}
    for other in census((7, 96, 3, 2)):
        row = ROWS[other.method]
        assert row.count_formula == other.count_formula
        assert evaluate(row.count_formula, sizes) == other.count
        assert evaluate(row.parameters_formula, sizes) == other.parameters


def run_layer(layer: MomentNorm2d) -> list[Tensor]:
    """Outputs of a training and an evaluation pass, and the buffers after them."""
    layer = layer.double()
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(15_000)  # in the middle of batch renorm's schedules
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 3, 3, dtype=torch.float64, generator=generator)
    x = 3 * x * torch.linspace(0.5, 2, 64).view(-1, 1, 1) + torch.linspace(-4, 4, 64).view(-1, 1, 1)
    with torch.no_grad():
        return [layer(x), layer.eval()(x), *(buffer.clone() for buffer in layer.buffers())]


@pytest.mark.parametrize("name", STATISTICS)
def test_hyperparameters_are_the_arguments_that_have_an_effect(name: str) -> None:
    method = METHODS[name]
    effective = set()
    for argument, parameter in inspect.signature(method).parameters.items():
        default = parameter.default
        if isinstance(default, tuple):
            other = default[:-1]
        elif isinstance(default, int | float) and not isinstance(default, bool):
            other = 2 * default
        else:
            continue
        pairs = zip(run_layer(method(64)), run_layer(method(64, **{argument: other})), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            effective.add(ARGUMENTS.get(argument, argument))
    assert set(ROWS[name].hyperparameters) == effective


def evaluate(formula: str, sizes: dict[str, int]) -> int:
    factors = (re.findall(r"\d+|\w", term) for term in formula.split(" + "))
    return sum(math.prod(sizes.get(f) or int(f) for f in term) for term in factors)


def test_the_work_is_linear_in_every_size() -> None:
    for row in census((16, 256, 28, 28)):
        if row.method not in ("frozen_bn", "wn"):
            assert row.exponents == pytest.approx({"N": 1, "C": 1, "HW": 1}, abs=0.05)
            # At least one read of every value of the activation.
            assert row.work >= 16 * 256 * 28 * 28


def test_frozen_statistics_and_none_cost_nothing() -> None:
    for row in (ROWS["frozen_bn"], ROWS["wn"]):
        assert (row.exponents, row.work, row.members) == (None, 0, ())
    assert row.params == ("γ", "β") and row.statistics == ()
    row = ROWS["frozen_bn"]
    assert row.params == () and row.statistics == ("μ′", "σ′")


@pytest.mark.parametrize("size", [(1, 64, 5, 3), (4, 64, 5), (4, 0, 5, 3)])
def test_sizes_where_statistics_coincide_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected N, C, H, W of at least 2"):
        census(size=size)
