"""The layers' benchmark: arithmetic, contenders, command line. No timing is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from norm_reference import gradients, randomize
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sn_imagenet.benchmark.command import REFERENCE, VERSION, run
from sn_imagenet.benchmark.contenders import (
    RESIDUAL,
    Fig7,
    layer_contenders,
    references,
    residual_contenders,
)
from sn_imagenet.benchmark.layers import (
    COPY,
    SHAPES,
    ActivationKind,
    LayerCase,
    geometric_means,
    layers_table,
)
from sn_imagenet.benchmark.timing import WARM_UP, time_interleaved
from sn_imagenet.norms import SwitchNorm2d

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmark.py"
KIND = ActivationKind(32, "contiguous", "fp32")
CPU = torch.device("cpu")


def make_case(shape: tuple[int, int, int], reference: float, ours: float) -> LayerCase:
    seconds = {REFERENCE: reference, "SN": ours, "copy": reference / 10}
    kept = {REFERENCE: 1.0, "SN": 1.0}
    return LayerCase(KIND, shape, "cpp", seconds, kept)


def test_ratios_and_means() -> None:
    cases = [make_case((64, 2, 2), 1.0, 0.5), make_case((8, 2, 2), 2.0, 4.0)]
    assert cases[0].ratios() == {REFERENCE: 1.0, "SN": 0.5, "copy": 0.1}
    # 8 units of traffic in 0.5 s against 2 in 0.1 s; and in 4 s against 2 in 0.2 s.
    assert cases[0].copy_share("SN") == pytest.approx(0.8)
    assert cases[0].copy_share("copy") == 1
    means = geometric_means(cases)["N=32 contiguous fp32"]
    expected = {"geometric_mean": 1.0, "max": 2.0, "copy_bandwidth_share": (0.8 * 0.2) ** 0.5}
    assert means["SN"] == pytest.approx(expected)
    # 2 x 4 bytes for each of 32 x 64 x 2 x 2 values in 0.1 s.
    assert cases[0].as_dict()["copy_bytes_per_second"] == pytest.approx(655_360)
    assert "geometric mean" in layers_table(cases)


def test_the_fastest_backend_is_the_reference() -> None:
    seconds = {f"{REFERENCE} (cuDNN)": 2.0, f"{REFERENCE} (native)": 1.0, "SN": 0.5, "copy": 0.1}
    assert LayerCase(KIND, (8, 2, 2), "triton", seconds, {}).ratios()["SN"] == 0.5


def test_kinds_differ_by_their_replicas() -> None:
    many = ActivationKind(2, "contiguous", "bf16", 16)
    one = ActivationKind(32, "contiguous", "bf16")
    assert (str(many), many.total) == ("N=16x2 contiguous bf16", 32)
    assert str(many) != str(one) and one.total == 32


def test_every_layer_shape_of_resnet_50_is_listed_once() -> None:
    assert len(set(SHAPES)) == 12


def test_every_contender_is_warmed_up_and_called_in_its_context() -> None:
    calls: list[str] = []
    inside: list[str] = []

    @contextmanager
    def entered() -> Iterator[None]:
        inside.append("b")
        yield
        inside.clear()

    def call(name: str) -> None:
        assert inside == (["b"] if name == "b" else [])
        calls.append(name)

    names = ("a", "b")
    calls_by_name = {name: lambda name=name: call(name) for name in names}
    seconds = time_interleaved(calls_by_name, 3, CPU, {"b": entered})
    assert set(seconds) == set(names) and all(value > 0 for value in seconds.values())
    assert calls[: 2 * (WARM_UP + 1)] == ["a"] * (WARM_UP + 1) + ["b"] * (WARM_UP + 1)


def test_every_contender_normalizes() -> None:
    """In bf16 as well, with a gradient for x and every parameter."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(6, 64, 3, 5).mul(3).add(2).to(dtype).requires_grad_()
        for name, contender in layer_contenders(x, replicas=3).items():
            y = contender.layer(x)
            assert y.dtype == x.dtype, name
            assert y.float().mean().abs() < 0.05 and 0.9 < y.float().std() < 1.1, name
            grads = gradients(y, [x, *contender.layer.parameters()])
            assert all(grad.isfinite().all() for grad in grads), name


def test_fig_7_equals_switch_norm() -> None:
    paper, ours = Fig7(6).double(), SwitchNorm2d(6).double()
    randomize(paper)
    with torch.no_grad():
        for theirs, parameter in zip(ours.parameters(), paper.parameters(), strict=True):
            theirs.copy_(parameter.flatten())
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(paper(x), ours(x))


def test_the_ends_of_residual_blocks_are_equal() -> None:
    x = torch.randn(4, 8, 3, 5, requires_grad=True)
    contenders = residual_contenders(x)
    blocks = [contenders[name].layer for name in RESIDUAL]
    for block in blocks:
        with torch.no_grad():
            block.residual.copy_(blocks[0].residual)
    y = [block(x) for block in blocks]
    torch.testing.assert_close(y[1], y[2])
    batch_norm = nn.BatchNorm2d(8)(x)
    torch.testing.assert_close(y[0], (batch_norm + blocks[0].residual).relu())
    assert not torch.allclose(y[0], y[1])
    separate, fused = (gradients(y[k], [x, blocks[k].residual]) for k in (1, 2))
    torch.testing.assert_close(separate, fused)


def test_the_share_of_the_copy_counts_the_residual() -> None:
    seconds = {REFERENCE: 1.0, RESIDUAL[-1]: 0.6, "copy": 0.1}
    # 12 units of traffic in 0.6 s against 2 in 0.1 s.
    assert LayerCase(KIND, (8, 2, 2), "cpp", seconds, {}).copy_share(RESIDUAL[-1]) == pytest.approx(
        1
    )


@pytest.mark.skipif(
    not torch.backends.cudnn.is_available(), reason="this PyTorch is built without cuDNN"
)
@pytest.mark.parametrize(
    ("dtype", "backends"),
    [
        (torch.float32, ["cuDNN", "native"]),
        (torch.float16, ["cuDNN", "native"]),
        (torch.bfloat16, ["native"]),  # PyTorch excludes it from cuDNN
    ],
    ids=str,
)
def test_batch_norm_backends_are_distinguished(dtype: torch.dtype, backends: list[str]) -> None:
    """PyTorch chooses for fake CUDA tensors, so no GPU is needed."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 8, 4, 4, device="cuda", dtype=dtype)
        assert list(references(x, 8)) == [f"{REFERENCE} ({name})" for name in backends]
    assert list(references(torch.empty(2, 8, 4, 4), 8)) == [REFERENCE]


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments, "--repeats", "1", "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_norms_writes_its_report(tmp_path: Path) -> None:
    out, plot = tmp_path / "norms.json", tmp_path / "norms.png"
    chosen = ["--samples", "1", "2x1", "--every", "11", "--layout", "channels_last"]
    chosen += ["--dtype", "bf16", "--residual"]
    result = run_script("norms", *chosen, "--json", str(out), "--plot", str(plot))
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert report["version"] == VERSION
    assert report["machine"]["hardware"]["cpu_threads"] == 1
    shapes = [c["shape"] for c in report["cases"]]
    assert shapes == 2 * [[64, 112, 112], [2048, 7, 7]]
    assert set(report["geometric_means"]) == {
        "N=1 channels_last bf16",
        "N=2x1 channels_last bf16",
    }
    assert report["cases"][0]["kept"]["SN"] == pytest.approx(1, abs=0.01)
    assert set(RESIDUAL) <= report["cases"][0]["seconds"].keys()
    assert plot.stat().st_size > 0 and "SN (native)" in result.stdout


def test_only_selects_contenders(tmp_path: Path) -> None:
    out = tmp_path / "norms.json"
    chosen = ["--samples", "2", "--every", "12", "--layout", "contiguous", "--dtype", "fp32"]
    chosen += ["--only", "SN", "--repeats", "1", "--device", "cpu", "--json", str(out)]
    assert run("", ROOT / "configs", ["norms", *chosen]) == 0
    report = json.loads(out.read_text())
    assert set(report["cases"][0]["seconds"]) == {REFERENCE, "SN", COPY}
    assert report["only"] == ["SN"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "mine"], "--only 'mine': expected some of 'nn.BatchNorm2d', "),
        (["--graph"], "--graph needs a CUDA device, not cpu"),
    ],
)
def test_user_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["norms", "--samples", "2", "--every", "12", "--device", "cpu", "--repeats", "1"]
    assert run("", ROOT / "configs", [*chosen, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="requires a machine without CUDA")
def test_a_missing_device_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("", ROOT / "configs", ["norms", "--device", "cuda"]) == 2
    assert "PyTorch finds no CUDA device; use --device cpu" in capsys.readouterr().err
