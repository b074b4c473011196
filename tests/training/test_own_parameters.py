"""Weight decay and other options of a method's own parameters, and an exact resume of rivals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from process_groups import run_on_ranks
from steppers import TOTAL_STEPS, make_stepper
from torch import nn

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import build_model
from sn_imagenet.norms import norm_layers
from sn_imagenet.tasks import prepare
from sn_imagenet.training import Stepper
from sn_imagenet.training.run import initialize_weight_norm

LR, DECAY = 0.25, 0.5
DIGITS = ("data=digits", "model=resnet14_mini", "batch=8x2")
Compose = Callable[..., ExperimentConfig]


def stepper_of(config: ExperimentConfig) -> tuple[nn.Module, Stepper]:
    network = build_model(config.model, config.norm, config.protocol, 10, config.seed)
    return network, make_stepper(network, config, Placement(8, 2), rate=lambda step: LR)


def batch(step: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(step)
    return ImageBatch(torch.randn(16, 3, 16, 16, generator=generator), torch.arange(16) % 10)


@pytest.mark.parametrize(
    ("norm", "own"),
    [
        ("gn", {}),
        ("sn", {"lambda_weight_decay": 0.0}),
        ("sn", {"lambda_weight_decay": 0.125}),
        ("ssn", {"lr_scale": 0.1, "weight_decay": 0.0, "max_norm": 1.0}),
        ("ssn", {"lr_scale": 3, "weight_decay": 0.25, "max_norm": 1e-3}),
        ("bin", {"lr_scale": 10.0, "weight_decay": 0.0}),
        ("frn", {"weight_decay": 0.25}),
        ("sn", {"lr_scale": 2}),
    ],
)
def test_options_of_a_methods_own_parameters(
    composed: Compose, norm: str, own: dict[str, float]
) -> None:
    own = dict(own)
    decay_of_lambda = own.pop("lambda_weight_decay", None)
    options = ", ".join(f"{key}: {value}" for key, value in own.items())
    config = composed(
        *(*DIGITS, f"norm={norm}", f"++norm.own_parameters={{{options}}}", "protocol.momentum=0"),
        f"protocol.weight_decay={DECAY}",
        f"protocol.lambda_weight_decay={'null' if decay_of_lambda is None else decay_of_lambda}",
    )
    if decay_of_lambda is not None:
        own = {"weight_decay": decay_of_lambda}
    network, stepper = stepper_of(config)
    with torch.no_grad():  # within the limits of rho, so that clamping changes nothing
        for name, parameter in network.named_parameters():
            if name.endswith("rho"):
                parameter.fill_(0.5)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    stepper.forward_backward(batch(0), 0)
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    layers = norm_layers(network)
    owned = {
        f"{name}.{key}"
        for name, layer in layers.items()
        for key, _ in layer.named_parameters()
        if key not in ("weight", "bias")
    }
    assert bool(owned) == (norm != "gn") and gradients.keys() == before.keys()
    stepper.optimizer_step(0)
    total = sum(gradients[name].square().sum().item() for name in owned) ** 0.5
    clip = min(1.0, own.get("max_norm", float("inf")) / (total + 1e-6))
    for name, parameter in network.named_parameters():
        rate, decay, factor = LR, DECAY, 1.0
        if name in owned:
            rate, decay = LR * own.get("lr_scale", 1), own.get("weight_decay", DECAY)
            factor = clip
        expected = before[name] - rate * (factor * gradients[name] + decay * before[name])
        expected = expected.clamp(0, 1) if name.endswith("rho") else expected
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_gradients_are_clipped_to_the_norm(composed: Compose, max_norm: float) -> None:
    network, stepper = stepper_of(composed(*DIGITS, "norm=gn", "protocol.weight_decay=0"))
    optimization = stepper.optimizations["optimizer"]
    stepper.optimizations = {"optimizer": replace(optimization, max_norm=max_norm)}
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    stepper.forward_backward(batch(0), 0)
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    norm = sum(g.double().square().sum().item() for g in gradients.values()) ** 0.5
    assert 1e-3 < norm < 1e3
    stepper.optimizer_step(0)
    for name, parameter in network.named_parameters():
        expected = before[name] - LR * min(1.0, max_norm / norm) * gradients[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-7)


def test_unknown_options_are_an_error(composed: Compose) -> None:
    with pytest.raises(ConfigError, match=r"norm\.own_parameters=lr: expected one of lr_scale"):
        composed(*DIGITS, "norm=bin", "+norm.own_parameters.lr=1")


@pytest.mark.parametrize("norm", ["ssn", "bin", "frn", "ebn", "wn"])
def test_a_resumed_run_equals_an_uninterrupted_one(composed: Compose, norm: str) -> None:
    config = composed(*DIGITS, f"norm={norm}", "protocol.base_lr=0.01")
    network, stepper = stepper_of(config)
    other, resumed = stepper_of(config)
    for step in range(4):
        if step == 2:
            resumed.load_state_dict(copy.deepcopy(stepper.state_dict()))
        for one in (stepper, resumed)[: 1 + (step >= 2)]:
            one.forward_backward(batch(step), step)
            one.optimizer_step(step)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in network.state_dict().items())
    if norm == "ssn":
        layer = norm_layers(other)["bn1"]
        assert layer.radius.item() == pytest.approx(4 / TOTAL_STEPS)


def initialized(rank: int, values: dict[str, Any]) -> dict[str, torch.Tensor]:
    prepared = prepare(from_dict(values))
    initialize_weight_norm(prepared)
    return prepared.network.state_dict()


@pytest.mark.slow
def test_weight_norm_is_initialized_alike_on_every_rank(composed: Compose, tmp_path: Any) -> None:
    values = composed(*DIGITS, "norm=wn", "trainer.device=cpu").to_dict()
    one = initialized(0, values)
    for state in run_on_ranks(2, initialized, tmp_path / "world", values):
        torch.testing.assert_close(state, one, rtol=0, atol=0)
    untouched = build_model(*(getattr(from_dict(values), k) for k in ("model", "norm", "protocol")),
                            10, 0).state_dict()  # fmt: skip
    assert any(not torch.equal(one[key], untouched[key]) for key in one)
