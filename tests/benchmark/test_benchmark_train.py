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
    run("", CONFIGS, [*SMALL, *chosen, "--json", str(out)])
    report = json.loads(out.read_text())
    assert (report["benchmark"], report["batch"], report["workers"]) == ("train", 16, 0)
    assert all(report[part] > 0 for part in ("loader", "step", "training"))
    assert report["steps_per_epoch"] == 1397 // 16
    assert benchmarked_speed(out).images_per_s == report["training"]
    assert report["loader"] > report["limit"] and report["step"] > report["limit"]
    assert 0 < report["data_wait_pct"] < 100
    output = capsys.readouterr().out
    assert "step 6/6" in output and "digits, resnet14_mini, sn 8x2, 0 workers, cpu" in output
