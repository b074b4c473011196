"""A training run against its parts: the arithmetic, and that a real run is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sn_imagenet.benchmark.command import run
from sn_imagenet.benchmark.train import Throughput
from sn_imagenet.sweeps.plan import benchmarked_speed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = ["train", "data=digits", "model=resnet14_mini", "batch=8x2", "norm=sn"]


def test_loader_and_step_take_turns_without_workers() -> None:
    in_turn = Throughput(16, 0, 87, loader=300.0, step=100.0, training=60.0, data_wait_pct=25.0)
    assert (in_turn.limit, in_turn.bound) == (pytest.approx(75), "step")
    assert in_turn.as_dict()["limit_share"] == pytest.approx(0.8)
    assert "both, in turn" in in_turn.table("") and "3.0 times as fast" in in_turn.table("")


def test_the_slower_part_is_the_limit_with_workers() -> None:
    parallel = Throughput(16, 2, 87, loader=80.0, step=100.0, training=72.0, data_wait_pct=25.0)
    assert (parallel.limit, parallel.bound) == (80, "loader")
    assert parallel.as_dict()["limit_share"] == pytest.approx(0.9)
    assert "bound by the loader: the step alone is 1.2 times" in parallel.table("")


def test_train_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "train.json"
    chosen = ["--steps", "6", "--repeats", "1", "trainer.log_every=2", "--device", "cpu"]
    assert run("", CONFIGS, [*SMALL, *chosen, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["benchmark"], report["batch"], report["workers"]) == ("train", 16, 0)
    assert all(report[part] > 0 for part in ("loader", "step", "training"))
    assert report["steps_per_epoch"] == 1397 // 16
    assert benchmarked_speed(out).images_per_s == report["training"]
    assert report["loader"] > report["limit"] and report["step"] > report["limit"]
    assert 0 < report["data_wait_pct"] < 100
    output = capsys.readouterr().out
    assert "step 6/6" in output and "digits, resnet14_mini, sn 8x2, 0 workers, cpu" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "60"], "--steps 60: expected at least two reports, 100 steps; or add"),
        (["batch=8x2", "trainer.epochs=1", "--steps", "100"], "the run has only 87 steps"),
        (["batch=3y3"], "batch"),
        (["batch=8x2", "data=nothing"], "nothing"),
    ],
)
def test_user_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("", CONFIGS, [*SMALL[:3], *SMALL[4:], *arguments, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "data=digits", "--unknown=3"],
        ["train", "data=digits", "--steps", "6", "word"],
        ["norms", "--repeats", "1", "norm=sn"],
    ],
)
def test_unknown_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("", CONFIGS, arguments)
    assert f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err
