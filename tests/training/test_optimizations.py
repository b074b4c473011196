"""Optimizers of a task: clipping, learning rates of groups, and steps after a non-finite loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from steppers import make_stepper

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement
from sn_imagenet.models import build_model
from sn_imagenet.tasks import Optimization
from sn_imagenet.training import Stepper

Compose = Callable[..., ExperimentConfig]
RATE = 0.5


def stepper_with(
    composed: Compose, optimizer: Callable[..., torch.optim.Optimizer], max_norm: float | None
) -> Stepper:
    """A stepper whose classifier learns ten times slower than the rest."""
    config = composed("data=digits", "model=resnet14_mini", "norm=gn", "batch=4x2")
    network = build_model(config.model, config.norm, config.protocol, 10, config.seed)
    stepper = make_stepper(network, config, Placement(4, 2))
    head = set(network.get_classifier().parameters())  # type: ignore[operator]
    groups = [
        {"params": [p for p in network.parameters() if p not in head]},
        {"params": list(head), "lr_scale": 0.1},
    ]
    optimization = Optimization(optimizer(groups, lr=RATE, fused=True), lambda _: RATE, max_norm)
    stepper.optimizations = {"optimizer": replace(optimization)}
    return stepper


def batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    return ImageBatch(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8))


@pytest.mark.parametrize("max_norm", [None, 1e-3, 1e3])
def test_gradients_are_clipped_to_the_norm(composed: Compose, max_norm: float | None) -> None:
    stepper = stepper_with(composed, torch.optim.SGD, max_norm)
    before = {name: p.detach().clone() for name, p in stepper.network.named_parameters()}
    stepper.forward_backward(batch(), 0)
    gradients = {n: p.grad.clone() for n, p in stepper.network.named_parameters()}  # type: ignore[union-attr]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    assert 1e-3 < norm < 1e3
    stepper.optimizer_step(0)
    assert stepper.learning_rate(0) == RATE
    factor = min(1.0, max_norm / norm) if max_norm else 1.0
    for name, parameter in stepper.network.named_parameters():
        rate = 0.1 * RATE if name.startswith("fc.") else RATE
        expected = before[name] - rate * factor * gradients[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-7)
