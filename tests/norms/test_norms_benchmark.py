"""The benchmark's arithmetic and its command; what it measures is for a quiet machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sn_imagenet.norms.benchmark.layers import REFERENCE, SHAPES, Case, geometric_means
from sn_imagenet.norms.benchmark.report import layers_table
from sn_imagenet.norms.benchmark.timing import alternate

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"


def case(shape: tuple[int, int, int], reference: float, ours: float) -> Case:
    seconds = {REFERENCE: reference, "SN": ours, "copy": reference / 10}
    return Case(32, shape, "contiguous", "fp32", "cpp", seconds, {REFERENCE: 1.0, "SN": 1.0})


def test_ratios_and_means() -> None:
    cases = [case((64, 2, 2), 1.0, 0.5), case((8, 2, 2), 2.0, 4.0)]
    assert cases[0].ratios() == {REFERENCE: 1.0, "SN": 0.5, "copy": 0.1}
    # 8 units of traffic in 0.5 s against 2 in 0.1 s.
    assert cases[0].copy_share("SN") == pytest.approx(0.8)
    means = geometric_means(cases)["N=32 contiguous fp32"]
    assert means["SN"] == pytest.approx({"geometric_mean": 1.0, "max": 2.0})
    assert "geometric mean" in layers_table(cases)


def test_every_layer_shape_of_resnet_50_once() -> None:
    assert len(set(SHAPES)) == 12


def test_alternates_and_takes_medians() -> None:
    calls: list[str] = []
    names = ("a", "b")
    seconds = alternate(
        {name: lambda name=name: calls.append(name) for name in names}, 3, torch.device("cpu")
    )
    assert set(seconds) == set(calls) == set(names)
    assert all(value > 0 for value in seconds.values())


def test_the_command_writes_its_report(tmp_path: Path) -> None:
    out, plot = tmp_path / "norms.json", tmp_path / "norms.png"
    command = [sys.executable, str(SCRIPT), "norms", "--samples", "1", "--every", "11"]
    command += ["--repeats", "1", "--threads", "1", "--json", str(out), "--plot", str(plot)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert report["version"] == 1 and report["machine"]["threads"] == 1
    assert [c["shape"] for c in report["cases"]] == [[64, 112, 112], [2048, 7, 7]]
    assert report["cases"][0]["kept"]["SN"] == pytest.approx(1, abs=0.01)
    assert plot.stat().st_size > 0 and "SN (native)" in result.stdout
