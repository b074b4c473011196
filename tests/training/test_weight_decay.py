"""Weight decay of all parameters, and a separate value for SN's importance weights."""

from __future__ import annotations

import pytest
import torch
from steppers import make_stepper
from torch import Tensor

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement
from sn_imagenet.models import build_model

LR, DECAY = 0.25, 0.5


@pytest.mark.parametrize("lambda_decay", [None, 0.0, 0.125])
def test_importance_weights_decay_as_configured(composed, lambda_decay: float | None) -> None:
    config = composed(
        *("data=digits", "model=resnet14_mini", "batch=8x2", "norm=sn", "protocol.momentum=0"),
        f"protocol.weight_decay={DECAY}",
        f"protocol.lambda_weight_decay={'null' if lambda_decay is None else lambda_decay}",
    )
    network = build_model(config.model, config.norm, config.protocol, 10, config.seed)
    stepper = make_stepper(network, config, Placement(8, 2), rate=lambda step: LR)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    images = torch.randn(16, 3, 16, 16)
    stepper.forward_backward(ImageBatch(images, torch.arange(16) % 10), 0)
    gradients: dict[str, Tensor] = {
        name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }
    assert gradients.keys() == before.keys()
    stepper.optimizer_step(0)
    for name, parameter in network.named_parameters():
        is_lambda = name.endswith(("mean_weight", "var_weight"))
        decay = DECAY if lambda_decay is None or not is_lambda else lambda_decay
        expected = before[name] - LR * (gradients[name] + decay * before[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
