"""The layers' benchmark: arithmetic, contenders, command line. No timing is asserted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from norm_reference import gradients, randomize

from sn_imagenet.benchmark.command import REFERENCE, VERSION, run
from sn_imagenet.benchmark.layers import (
    COPY,
    ActivationKind,
    Fig7,
    geometric_means,
    layer_case,
    layer_contenders,
    layers_table,
)
from sn_imagenet.benchmark.timing import WARM_UP, median_seconds
from sn_imagenet.norms import SwitchNorm2d

KIND = ActivationKind(32, "contiguous", "fp32")
CPU = torch.device("cpu")


def make_case(shape: tuple[int, int, int], reference: float, ours: float) -> dict[str, Any]:
    seconds = {REFERENCE: reference, "SN": ours, "copy": reference / 10}
    kept = {REFERENCE: 1.0, "SN": 1.0}
    return layer_case(KIND, shape, "cpp", seconds, kept)


def test_ratios_and_means() -> None:
    cases = [make_case((64, 2, 2), 1.0, 0.5), make_case((8, 2, 2), 2.0, 4.0)]
    assert cases[0]["ratios"] == {REFERENCE: 1.0, "SN": 0.5, "copy": 0.1}
    # 8 units of traffic in 0.5 s against 2 in 0.1 s; and in 4 s against 2 in 0.2 s.
    shares = {REFERENCE: 0.4, "SN": 0.8, "copy": 1.0}
    assert cases[0]["copy_bandwidth_share"] == pytest.approx(shares)
    means = geometric_means(cases)
    expected = {"geometric_mean": 1.0, "max": 2.0, "copy_bandwidth_share": (0.8 * 0.2) ** 0.5}
    assert means["SN"] == pytest.approx(expected)
    # 2 x 4 bytes for each of 32 x 64 x 2 x 2 values in 0.1 s.
    assert cases[0]["copy_bytes_per_second"] == pytest.approx(655_360)
    assert "geometric mean" in layers_table(cases)


def test_a_case_counts_the_samples_of_all_replicas() -> None:
    seconds = {REFERENCE: 1.0, "SN": 0.5, "copy": 0.1}
    many = ActivationKind(2, "contiguous", "bf16", 16)
    case = layer_case(many, (8, 2, 2), "triton", seconds, {})
    assert (case["title"], case["ratios"]["SN"]) == ("N=16x2 contiguous bf16", 0.5)
    assert case["copy_bytes_per_second"] == pytest.approx(2 * 2 * 32 * 8 * 2 * 2 / 0.1)


def test_every_contender_is_warmed_up_and_called_in_each_round() -> None:
    calls: list[str] = []
    sleep = {name: lambda name=name: (calls.append(name), time.sleep(0.003)) for name in "ab"}
    seconds = median_seconds(sleep, 3, CPU)
    assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0.003
    assert calls[: 2 * WARM_UP] == ["a"] * WARM_UP + ["b"] * WARM_UP
    rounds = calls[2 * WARM_UP :]
    assert [{*rounds[i : i + 2]} for i in (0, 2, 4)] == [{"a", "b"}] * 3 and len(rounds) == 6


def test_every_contender_normalizes() -> None:
    """In bf16 as well, with a gradient for x and every parameter."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(6, 64, 3, 5).mul(3).add(2).to(dtype).requires_grad_()
        for name, layer in layer_contenders(x, replicas=3).items():
            y = layer(x)
            assert y.dtype == x.dtype, name
            assert y.float().mean().abs() < 0.05 and 0.9 < y.float().std() < 1.1, name
            grads = gradients(y, [x, *layer.parameters()])
            assert all(grad.isfinite().all() for grad in grads), name
        for name, layer in layer_contenders(x, replicas=3, relu=True).items():
            assert layer(x).min() == 0, name


def test_fig_7_equals_switch_norm() -> None:
    paper, ours = Fig7(6).double(), SwitchNorm2d(6).double()
    randomize(paper)
    with torch.no_grad():
        for theirs, parameter in zip(ours.parameters(), paper.parameters(), strict=True):
            theirs.copy_(parameter.flatten())
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(paper(x), ours(x))


@pytest.mark.parametrize("relu", [False, True])
def test_norms_writes_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], relu: bool
) -> None:
    out = tmp_path / "norms.json"
    chosen = ["--samples", "1", "2x1", "--every", "11", "--layout", "channels_last"]
    chosen += ["--dtype", "bf16", "--only", "SN", "SN (native)", *(["--relu"] if relu else [])]
    chosen += ["--repeats", "1", "--device", "cpu", "--threads", "1", "--json", str(out)]
    run("", ["norms", *chosen])
    report = json.loads(out.read_text())
    assert report["version"] == VERSION and report["relu"] == relu
    assert report["machine"]["hardware"]["cpu_threads"] == 1
    assert [c["shape"] for c in report["cases"]] == 2 * [[64, 112, 112], [2048, 7, 7]]
    assert set(report["geometric_means"]) == {"N=1 channels_last bf16", "N=2x1 channels_last bf16"}
    assert set(report["cases"][0]["seconds"]) == {REFERENCE, "SN", "SN (native)", COPY}
    assert report["cases"][0]["kept"]["SN"] == pytest.approx(1, abs=0.01)
    assert "SN (native)" in capsys.readouterr().out
