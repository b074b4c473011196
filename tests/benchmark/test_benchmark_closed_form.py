"""The modes that the closed form's benchmark compares give equal results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
from norm_reference import gradients, randomize
from torch import Tensor

from sn_imagenet.benchmark.closed_form import (
    AUTOGRAD,
    CLOSED_FORM,
    COMPILED,
    MIXTURES,
    ClosedFormCase,
    closed_form_table,
    set_combine_mode,
)
from sn_imagenet.benchmark.command import run
from sn_imagenet.norms import MomentNorm2d, set_replicas
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.norms.moments import Moments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_ratios_to_the_closed_form() -> None:
    case = ClosedFormCase("layer", "sn", {CLOSED_FORM: 0.5, AUTOGRAD: 1.0})
    assert case.as_dict()["ratios"] == {CLOSED_FORM: 1.0, AUTOGRAD: 2.0}
    assert closed_form_table([case]).split() == [
        *["norm", "closed", "form", "ms", AUTOGRAD],
        *["layer", "sn", "500.00", "2.00"],
    ]


@pytest.mark.parametrize("method", MIXTURES)
@pytest.mark.parametrize("mode", [CLOSED_FORM, AUTOGRAD])
def test_the_modes_are_equal(mode: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of ``coefficients`` show which mode ran: the closed form makes none."""
    calls: list[Moments] = []
    coefficients = MomentNorm2d.coefficients

    def recorded(layer: MomentNorm2d, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(moments)
        return coefficients(layer, moments)

    monkeypatch.setattr(MomentNorm2d, "coefficients", recorded)
    check(mode, method)
    assert len(calls) == 1 + (mode == AUTOGRAD)  # one call by the expected formula


@pytest.mark.slow
def test_the_compiled_mode_is_equal() -> None:
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    check(COMPILED, "sn")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


def check(mode: str, method: str) -> None:
    """Compare output, gradients and running statistics in ``mode`` with the unmodified layer's."""
    layers = [METHODS[method](6), METHODS[method](6)]
    for layer in layers:
        torch.manual_seed(0)
        randomize(layer)
        set_replicas(layer, 2)
    set_combine_mode(mode, layers[0])
    x = torch.randn(4, 6, 3, 5, requires_grad=True)
    y = layers[0](x)
    actual = gradients(y, [x, *layers[0].parameters()])
    layers[1].backend = "formula"
    expected = layers[1](x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(actual, gradients(expected, [x, *layers[1].parameters()]))
    torch.testing.assert_close(dict(layers[0].named_buffers()), dict(layers[1].named_buffers()))


@pytest.mark.slow
def test_closed_form_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "closed_form.json"
    chosen = ["--layers", "2x1", "--every", "12", "--mini", "2x1", "--resnet50", "--norm", "sn"]
    chosen += ["--repeats", "1", "--clock", "cpu", "--device", "cpu"]
    assert run("", CONFIGS, ["closed-form", *chosen, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["benchmark"], report["clock"]) == ("closed-form", "cpu")
    assert [case["title"] for case in report["cases"]] == [
        "layer 2048x7x7, N=2x1 contiguous fp32",
        "step resnet50_mini, (2,1) at 16 px, fp32",
    ]
    for case in report["cases"]:
        assert set(case["seconds"]) == set(case["ratios"]) == {CLOSED_FORM, AUTOGRAD}
        assert case["ratios"][CLOSED_FORM] == 1
    assert "step resnet50_mini, (2,1) at 16 px" in capsys.readouterr().out


def test_nothing_to_measure_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = ["closed-form", "--layers", "--mini", "--resnet50", "--device", "cpu"]
    assert run("", CONFIGS, nothing) == 2
    assert "--layers, --mini and --resnet50 are all empty" in capsys.readouterr().err
