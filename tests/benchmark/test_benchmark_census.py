"""Table 1's counts against the sizes of the statistics as the papers define them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sn_imagenet.benchmark.census import METHODS, census, polynomial
from sn_imagenet.norms import BatchNorm2d, Moments, PooledNorm2d, Statistics, SwitchNorm2d

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
}
PARAMETERS = dict.fromkeys(STATISTICS, 2 * C) | {"sn": 2 * C + 6, "frozen_bn": 0}
HYPERPARAMETERS = {
    "bn": {"p", "ϵ"},
    "in": {"ϵ"},
    "ln": {"ϵ"},
    "gn": {"g", "ϵ"},
    "brn": {"p", "ϵ", "r", "d", "warmup_steps", "r_steps", "d_steps"},
    "sn": {"p", "ϵ", "Ω"},
    "sync_bn": {"p", "ϵ"},
    "frozen_bn": {"ϵ"},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str) -> None:
    (row,) = census({name: METHODS[name]}, SIZE)
    assert (row.method, row.size) == (name, SIZE)
    assert row.count == STATISTICS[name]
    assert row.parameters == PARAMETERS[name]
    assert set(row.hyperparameters) == HYPERPARAMETERS[name]
    # The formulas hold elsewhere too: at sizes that no fit has seen.
    there = {"N": 7, "C": 96, "H": 3, "W": 2, "g": GROUPS}
    (other,) = census({name: METHODS[name]}, (7, 96, 3, 2))
    assert evaluate(row.count_formula, there) == other.count
    assert evaluate(row.parameters_formula, there) == other.parameters


def evaluate(formula: str, sizes: dict[str, int]) -> int:
    total = 0
    for term in formula.split(" + "):
        product = int("".join(c for c in term if c.isdigit()) or 1)
        for letter in term.lstrip("0123456789"):
            product *= sizes[letter]
        total += product
    return total


@pytest.mark.parametrize("name", [name for name in METHODS if name != "frozen_bn"])
def test_the_work_is_linear_in_every_size(name: str) -> None:
    (row,) = census({name: METHODS[name]}, (16, 256, 28, 28))
    assert row.exponents is not None
    assert row.exponents == pytest.approx({"N": 1, "C": 1, "HW": 1}, abs=0.05)
    # At least one read of every value of the activation.
    assert row.work >= 16 * 256 * 28 * 28


def test_frozen_statistics_cost_nothing() -> None:
    (row,) = census({"frozen_bn": METHODS["frozen_bn"]}, SIZE)
    assert (row.exponents, row.work, row.members) == (None, 0, ())
    assert row.params == () and row.statistics == ("μ′", "σ′")


class Whitening(BatchNorm2d):
    """Looks at the covariance of the channels: C^2 numbers."""

    def pool(self, moments: Moments) -> Statistics:
        mean, var = moments.batch()
        covariance = mean[0, 0, :, None] * mean[0, 0, None, :]
        return mean + 0 * covariance.sum(), var


def test_quadratic_work_shows() -> None:
    (row,) = census({"own": Whitening}, (2, 1024, 2, 2))
    assert row.exponents is not None
    assert row.exponents["C"] == pytest.approx(2, abs=0.1)
    assert row.exponents["N"] < 0.1


class Own(PooledNorm2d):
    """Half layer, half batch, by a learned share; one argument that does nothing."""

    stores_statistics = True

    def __init__(
        self, num_features: int, eps: float = 1e-5, gain: float = 2.0, unused: float = 1.0, **rest
    ) -> None:
        super().__init__(num_features, eps, **rest)
        self.gain = gain
        self.share = nn.Parameter(torch.full((1,), 0.5, device=rest.get("device")))

    def pool(self, moments: Moments) -> Statistics:
        layer, batch = moments.layer(), self.batch_statistics(moments)
        return (layer[0] + self.share * batch[0]) / self.gain, (layer[1] + batch[1]) / self.gain


def test_a_normaliser_of_ones_own() -> None:
    (row,) = census({"own": Own}, SIZE)
    assert set(row.hyperparameters) == {"ϵ", "gain"}
    assert row.params == ("γ", "β", "share") and row.parameters_formula == "2C + 1"
    assert set(row.members) == {"ln", "bn"} and row.count == 2 * N + 2 * C


class Raw(PooledNorm2d):
    def pool(self, moments: Moments) -> Statistics:
        return moments.mean.mean(dim=(1, 2), keepdim=True), moments.var.mean((0, 1, 2))


def test_tables_that_are_pooled_by_hand() -> None:
    (row,) = census({"raw": Raw}, SIZE)
    assert row.members == ("own",) and row.count_formula == "N + 1"


def test_omega_decides_what_is_counted() -> None:
    (row,) = census({"sn": lambda *a, **k: SwitchNorm2d(*a, **k, omega=("in", "ln"))}, SIZE)
    assert row.count == 2 * N + 2 * N * C and row.parameters == 2 * C + 4
    assert row.statistics == ("μ_k", "σ_k")


def test_polynomials() -> None:
    assert polynomial(lambda g, N, C, H, W: 2 * N * C + 3 * g + 7) == "3g + 2NC + 7"  # noqa: N803
    assert polynomial(lambda **_: 0) == "0"
    with pytest.raises(ValueError, match="no polynomial"):
        polynomial(lambda g, N, C, H, W: N**3)  # noqa: N803


@pytest.mark.parametrize("size", [(1, 64, 5, 3), (4, 64, 5), (4, 0, 5, 3)])
def test_sizes_at_which_statistics_coincide(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected N, C, H, W of at least 2"):
        census(size=size)
