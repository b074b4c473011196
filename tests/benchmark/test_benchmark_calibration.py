"""Calibration against inference: the arithmetic, and that both read the same images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sn_imagenet.benchmark.calibration import CalibrationCost
from sn_imagenet.benchmark.command import run
from sn_imagenet.data.datasets import AugmentedDataset

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = ["calibration", "data=digits", "model=resnet14_mini", "batch=8x2", "--device", "cpu"]


def test_the_ratio_is_of_calibration_over_inference() -> None:
    cost = CalibrationCost(images=10, calibration=0.5, inference=0.4)
    assert cost.ratio == pytest.approx(1.25)
    *_, calibration = cost.table("a run").splitlines()
    assert calibration.split() == ["calibration", "20.0", "50.00", "1.25"]


@pytest.mark.slow
def test_both_pass_over_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, original = [], AugmentedDataset.__getitems__

    def recorded(dataset: AugmentedDataset, keys: list) -> object:
        read.append(tuple(keys))
        return original(dataset, keys)

    monkeypatch.setattr(AugmentedDataset, "__getitems__", recorded)
    out = tmp_path / "calibration.json"
    arguments = ["norm=sn", "calibration.samples=15", "--repeats", "1", "--clock", "cpu"]
    assert run("", CONFIGS, [*SMALL, *arguments, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["benchmark"], report["images"]) == ("calibration", 14)
    assert report["ratio"] == pytest.approx(report["calibration"] / report["inference"])
    assert len(set(read)) == 1 and len(read) % 2 == 0  # equally often by both
    assert "digits, resnet14_mini, sn 8x2, 14 images of 16 px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["norm=gn"], "norm=gn stores no statistics"),
        (["data.workers=2", "--clock", "cpu"], "not its 2 loader processes; add data.workers=0"),
    ],
)
def test_user_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("", CONFIGS, [*SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err
