"""A few training steps: by G plain processes, and by the package in any placement."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from plain_layers import PlainLayer, complete, plain_layer
from steppers import TOTAL_STEPS, make_stepper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement
from sn_imagenet.models import build_model
from sn_imagenet.models.mini import build_mini

CLASSES = 10
RATES = (0.1, 0.1, 0.01)  # of one step each; momentum persists over the drop
Outcome = dict[str, Any]


def batch(step: int, total: int) -> tuple[Tensor, Tensor]:
    """The global batch of ``step``: float64 images of 16 x 16 pixels, and labels."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(total, 3, 16, 16, generator=generator, dtype=torch.float64)
    # Each sample has its own scale and offset, so that every kind of statistics matters.
    images = images * torch.linspace(0.5, 2, total)[:, None, None, None] + images.mean(1, True)
    return images, torch.randint(CLASSES, (total,), generator=generator)


def initial_network(config: ExperimentConfig) -> nn.Module:
    """The package's network in float64, the same on every rank and for every world size."""
    network = build_model(config.model, config.norm, config.protocol, CLASSES, config.seed).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            # No parameter may stay at a value (0, 1, all equal) that could hide an error.
            parameter.add_(0.1 * noise)
            if name.endswith("rho"):  # from -0.3 on, to be clamped
                parameter.sub_(0.8)
    return network


def plain(rank: int, values: dict[str, dict[str, Any]]) -> dict[str, Outcome]:
    """The outcome of replica ``rank`` for each config, under plain DistributedDataParallel."""
    return {case: _plain(rank, from_dict(value)) for case, value in values.items()}


def _plain(rank: int, config: ExperimentConfig) -> Outcome:
    omega = config.norm.args.get("omega", ())
    name = config.norm.name
    network = build_mini(
        config.model.name, CLASSES, lambda channels, **_: plain_layer(name, channels, omega)
    )
    network = complete(network, name).double()
    network.load_state_dict(initial_network(config).state_dict())
    model = DistributedDataParallel(network)
    protocol = config.protocol
    optimizer = torch.optim.SGD(
        network.parameters(), 0, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    steps = []
    for step, rate in enumerate(RATES):
        images, labels = batch(step, config.batch.total)
        # DistributedSampler assigns sample i to process i mod G.
        images, labels = images[rank :: config.batch.gpus], labels[rank :: config.batch.gpus]
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        mean_loss, correct = loss.detach().clone(), (logits.argmax(1) == labels).sum()
        dist.all_reduce(mean_loss)
        dist.all_reduce(correct)
        steps.append(_step(network, mean_loss.item() / config.batch.gpus, correct.item()))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for module in network.modules():
            if isinstance(module, PlainLayer):
                module.after_step((step + 1) / TOTAL_STEPS)
    return {"steps": steps, "state": network.state_dict()}


def placed_cases(
    rank: int, world_size: int, values: dict[str, dict[str, Any]]
) -> dict[str, Outcome]:
    """The rank's outcome for each config in ``values``, by the package."""
    return {case: placed(rank, world_size, from_dict(value)) for case, value in values.items()}


def placed(rank: int, world_size: int, config: ExperimentConfig) -> Outcome:
    """The same steps by the package's Stepper, on rank ``rank`` of ``world_size``."""
    placement = Placement(
        config.batch.gpus,
        config.batch.samples_per_gpu,
        world_size,
        rank,
        config.trainer.replicas_per_pass,
    )
    network = initial_network(config)
    stepper = make_stepper(network, config, placement, rate=lambda step: RATES[step])
    steps = []
    for step in range(len(RATES)):
        images, labels = batch(step, config.batch.total)
        part = ImageBatch(images[rank::world_size], labels[rank::world_size])
        outcome = stepper.forward_backward(part, step)
        assert outcome.samples == config.batch.total
        steps.append(_step(network, outcome.loss, outcome.sums["correct"]))
        stepper.optimizer_step(step)
    stepper.broadcast_statistics()
    return {"steps": steps, "state": network.state_dict()}


def _step(network: nn.Module, loss: float, correct: float) -> Outcome:
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    return {"loss": loss, "correct": correct, "gradients": gradients}
