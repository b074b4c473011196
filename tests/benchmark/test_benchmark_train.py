"""A training run against its parts: the arithmetic, and that a real run is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sn_imagenet.benchmark.command import run
from sn_imagenet.benchmark.train import bottleneck, training_table
from sn_imagenet.sweeps.plan import benchmarked_speed

SMALL = ["train", "data=digits", "model=resnet14_mini", "batch=8x2", "norm=sn"]


@pytest.mark.parametrize(
    ("workers", "loader", "expected", "words"),
    [
        (
            0,
            300.0,
            (75, "step", 0.8),
            ("both, in turn", "bound by the step: the loader alone is 3.0"),
        ),
        (
            2,
            80.0,
            (80, "loader", 0.75),
            ("both, in parallel", "the step alone is 1.2 times as fast"),
        ),
    ],
)
def test_loader_and_step_take_turns_only_without_workers(
    workers: int, loader: float, expected: tuple[float, str, float], words: tuple[str, str]
) -> None:
    facts = {"workers": workers, "loader": loader, "step": 100.0, "training": 60.0, "batch": 16}
    facts |= {"data_wait_pct": 25.0, **bottleneck(facts)}
    assert (facts["limit"], facts["bound"], facts["limit_share"]) == pytest.approx(expected)
    assert all(each in training_table("", facts) for each in words)


def test_train_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "train.json"
    chosen = ["--steps", "6", "--repeats", "1", "trainer.log_every=2", "--device", "cpu"]
    run("", [*SMALL, *chosen, "--json", str(out)])
    report = json.loads(out.read_text())
    assert (report["benchmark"], report["batch"], report["workers"]) == ("train", 16, 0)
    assert all(report[part] > 0 for part in ("loader", "step", "training"))
    assert report["steps_per_epoch"] == 1397 // 16
    assert benchmarked_speed(out).images_per_s == report["training"]
    assert report["loader"] > report["limit"] and report["step"] > report["limit"]
    assert 0 < report["data_wait_pct"] < 100
    output = capsys.readouterr().out
    assert "step 6/6" in output and "digits, resnet14_mini, sn 8x2, 0 workers, cpu" in output
