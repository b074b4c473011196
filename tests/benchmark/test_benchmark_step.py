"""The step's benchmark times the steps of training. No timing is asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sn_imagenet.benchmark.command import REFERENCE, VERSION, run
from sn_imagenet.benchmark.step import (
    PYTORCH_LAYERS,
    StepContender,
    StepData,
    StepKind,
    timm_step,
    trainer_step,
)
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.norms import norm_layers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CPU = torch.device("cpu")
KIND = StepKind(4, 2, 16, network="resnet14_mini", classes=10)
Compose = Callable[..., ExperimentConfig]


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_images_have_the_precision_that_training_gives_them() -> None:
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert StepData(replace(KIND, dtype=name), CPU).images.dtype == dtype


def test_a_step_moves_the_weights(composed: Compose) -> None:
    data = StepData(KIND, CPU)
    sn = composed("norm=sn", *KIND.overrides)
    contenders: list[StepContender] = [timm_step(layer, data) for layer in PYTORCH_LAYERS.values()]
    contenders.append(trainer_step(sn, data))
    for index, contender in enumerate(contenders):
        assert contender.forward().shape == (8, 10)
        before = weights(contender.network)
        contender.step()
        after = weights(contender.network)
        unchanged = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        # timm's blocks start with a last gamma of 0: the layers before it get no gradient yet.
        assert not all(unchanged) if index < len(PYTORCH_LAYERS) else not any(unchanged)


@pytest.mark.parametrize("passes", [None, 1])
def test_the_networks_are_those_of_training(composed: Compose, passes: int | None) -> None:
    """They have fused ReLUs, and the setting's replicas in the configured number of passes."""
    config = composed("norm=sn", *KIND.overrides, f"trainer.replicas_per_pass={passes or 'null'}")
    contender = trainer_step(config, StepData(KIND, CPU))
    layers = norm_layers(contender.network).values()
    # All layers but the four of the shortcuts end in a ReLU.
    assert sum(not layer.relu for layer in layers) == 4
    assert {layer.replicas.count for layer in layers} == {passes or 4}
    assert len(contender.forward()) == (2 if passes else 8)


def test_step_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    chosen = ["--network", "resnet14_mini", "--classes", "10", "--batch", "2", "2x1"]
    chosen += ["--image-size", "16", "--repeats", "1", "--device", "cpu"]
    run("", CONFIGS, ["step", *chosen, "--json", str(out)])
    report = json.loads(out.read_text())
    assert (report["version"], report["benchmark"], report["reference"]) == (
        VERSION,
        "step",
        REFERENCE,
    )
    one, several = report["cases"]
    for case, ours in (
        (one, {"BN", "GN", "SN"}),
        (several, {"BN (2,1)", "GN (2,1)", "SN (2,1)", "SN (2,1) in 2 passes"}),
    ):
        names = ours | set(PYTORCH_LAYERS)
        assert set(case["seconds"]) == set(case["ratios"]) == set(case["kept"]) == names
        assert case["ratios"][REFERENCE] == 1
        assert case["peak_memory"] == {}  # counted on CUDA only
    # A pass over half the images keeps half the memory.
    kept = several["kept"]["SN (2,1) in 2 passes"] / several["kept"]["SN (2,1)"]
    assert kept == pytest.approx(0.5, abs=0.05)
    assert "resnet14_mini, (2,1) at 16 px" in capsys.readouterr().out
