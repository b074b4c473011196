"""Every placement of a setting trains like the paper's GPUs (design idea 2), in float64.

The reference for G replicas is G gloo processes under plain DistributedDataParallel (with its
default buffer broadcasts) and unmodified per-process layers: torch's BatchNorm2d and GroupNorm, and
Fig. 7 of the paper as a plain module. Its running statistics are those of rank 0.

If a replica spans ranks, replica 0's running statistics are over all its samples, and the variance
is unbiased by their total number. The reference has all samples of a replica in one process.

Tolerance: float64 rounds to 1.1e-16, and the orders of summation differ. Through 17 normalized
layers, forward and backward, and three steps, the largest difference observed is 8e-14 of a
tensor's largest entry; 1e-9 allows for other orders of summation on other machines. The least
visible error, a biased instead of an unbiased running variance, changes it by 1e-3 or more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from placed_training import Outcome, placed, placed_cases, plain
from process_groups import run_on_ranks
from torch import Tensor

from sn_imagenet.config import ExperimentConfig, from_dict

TOLERANCE = 1e-9
NORMS = ("bn", "gn", "sn")
RIVALS = ("ssn", "bin", "frn", "ebn", "mean_bn", "wn")
Setting = tuple[int, int]
Compose = Callable[..., ExperimentConfig]


def config_of(
    composed: Compose, setting: Setting, norm: str, per_pass: int | None = None, *overrides: str
) -> dict[str, Any]:
    gpus, samples = setting
    return composed(
        "data=digits",
        "model=resnet14_mini",
        f"norm={norm}",
        f"batch.gpus={gpus}",
        f"batch.samples_per_gpu={samples}",
        f"trainer.replicas_per_pass={per_pass or 'null'}",
        "protocol.weight_decay=0.01",  # strong enough to be seen after three steps
        *overrides,
    ).to_dict()


@pytest.fixture(scope="module")
def reference(
    composed: Compose, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Setting], dict[str, Outcome]]:
    outcomes: dict[Setting, dict[str, Outcome]] = {}

    def reference_of(setting: Setting) -> dict[str, Outcome]:
        if setting not in outcomes:
            cases = {norm: config_of(composed, setting, norm) for norm in NORMS}
            folder = tmp_path_factory.mktemp("plain") / "world"
            outcomes[setting] = run_on_ranks(setting[0], plain, folder, cases)[0]
        return outcomes[setting]

    return reference_of


def assert_equal(ours: Outcome, theirs: Outcome, case: str) -> None:
    for step, (mine, other) in enumerate(zip(ours["steps"], theirs["steps"], strict=True)):
        context = f"{case}, step {step}"
        assert mine["correct"] == other["correct"], context
        assert mine["loss"] == pytest.approx(other["loss"], rel=TOLERANCE), context
        assert_tables_equal(mine["gradients"], other["gradients"], f"{context}, gradient of")
    assert_tables_equal(ours["state"], theirs["state"], f"{case}, at the end")


def assert_tables_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], context: str) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        largest = expected.abs().max().item()
        difference = (ours[name] - expected).abs().max().item()
        assert largest > 0, f"{context} {name}: the reference is all zero and shows nothing"
        assert difference <= TOLERANCE * largest, (
            f"{context} {name}: differs by {difference:.2e} of {largest:.2e}"
        )


def test_the_reference_distinguishes_settings(
    reference: Callable[[Setting], dict[str, Outcome]],
) -> None:
    """(8,2) and (4,4) have the same batches; only the statistics per GPU differ."""
    eight, four = reference((8, 2)), reference((4, 4))
    loss = {
        norm: (eight[norm]["steps"][0]["loss"], four[norm]["steps"][0]["loss"]) for norm in eight
    }
    assert loss["gn"][0] == pytest.approx(loss["gn"][1], rel=TOLERANCE)
    for norm in ("bn", "sn"):
        assert abs(loss[norm][0] - loss[norm][1]) > 1e-3


@pytest.mark.parametrize(
    ("setting", "per_pass"),
    [((8, 2), (None, 4, 1)), ((4, 1), (None, 2, 1)), ((1, 8), (None,)), ((2, 4), (None, 1))],
)
def test_one_process_trains_like_the_gpus(
    composed: Compose,
    reference: Callable[[Setting], dict[str, Outcome]],
    setting: Setting,
    per_pass: tuple[int | None, ...],
) -> None:
    for norm in NORMS:
        for replicas in per_pass:
            ours = placed(0, 1, from_dict(config_of(composed, setting, norm, replicas)))
            assert_equal(ours, reference(setting)[norm], f"{norm}, {replicas} per pass")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "world_size", "per_pass"),
    [
        ((8, 2), 2, (None, 2, 1)),
        ((4, 1), 2, (None, 1)),
        ((1, 8), 2, (None,)),
        ((2, 4), 2, (None,)),
        ((8, 2), 4, (None, 1)),
        ((4, 1), 4, (None,)),
        ((1, 8), 4, (None,)),
        # Two replicas that span two ranks each: ranks 0 and 2, ranks 1 and 3.
        ((2, 4), 4, (None,)),
    ],
)
def test_several_processes_train_like_the_gpus(
    composed: Compose,
    reference: Callable[[Setting], dict[str, Outcome]],
    tmp_path: Path,
    setting: Setting,
    world_size: int,
    per_pass: tuple[int | None, ...],
) -> None:
    cases = {
        f"{norm}, {replicas} per pass": config_of(composed, setting, norm, replicas)
        for norm in NORMS
        for replicas in per_pass
    }
    ranks = run_on_ranks(world_size, placed_cases, tmp_path / "world", world_size, cases)
    for rank, outcomes in enumerate(ranks):
        for case, ours in outcomes.items():
            assert_equal(ours, reference(setting)[case[:2]], f"{case}, rank {rank}")


@pytest.mark.slow
def test_rivals_of_sn_train_like_the_gpus(composed: Compose, tmp_path: Path) -> None:
    """Including what their layers change after each step, on one, two and four processes: with two
    passes, in one pass, and with replicas that span two ranks."""
    setting = (2, 4)
    own = "{lr_scale: 1, weight_decay: 0.01, max_norm: 1e9}"  # as all parameters
    cases = {
        n: config_of(composed, setting, n, None, f"++norm.own_parameters={own}") for n in RIVALS
    }
    reference = run_on_ranks(setting[0], plain, tmp_path / "plain", cases)[0]
    for norm in RIVALS:
        config = from_dict(config_of(composed, setting, norm, 1, f"++norm.own_parameters={own}"))
        assert_equal(placed(0, 1, config), reference[norm], f"{norm}, two passes")
    for world_size in (2, 4):
        folder = tmp_path / f"world{world_size}"
        for outcomes in run_on_ranks(world_size, placed_cases, folder, world_size, cases):
            for norm, ours in outcomes.items():
                assert_equal(ours, reference[norm], f"{norm}, {world_size} processes")


def test_dropout_is_the_same_in_every_placement(composed: Compose, tmp_path: Path) -> None:
    """The reference is one process, because plain DDP draws each process's masks separately."""

    def case(setting: Setting, per_pass: int | None, *more: str) -> dict[str, Any]:
        return config_of(composed, setting, "sn", per_pass, "protocol=official_code", *more)

    for setting in ((8, 2), (1, 8)):
        one = placed(0, 1, from_dict(case(setting, None)))
        without = placed(0, 1, from_dict(case(setting, None, "protocol.dropout=0")))
        assert abs(one["steps"][0]["loss"] - without["steps"][0]["loss"]) > 1e-3
        splits = (None, 4) if setting[0] > 1 else (None,)
        cases = {f"{setting}, {replicas} per pass": case(setting, replicas) for replicas in splits}
        folder = tmp_path / f"{setting[0]}x{setting[1]}"
        for outcomes in run_on_ranks(2, placed_cases, folder, 2, cases):
            for name, ours in outcomes.items():
                assert_equal(ours, one, name)
        if setting[0] > 1:
            assert_equal(placed(0, 1, from_dict(case(setting, 2))), one, f"{setting}, 2 per pass")
