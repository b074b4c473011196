"""The timed networks and steps: timm's with PyTorch's layers, and the trainer's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sn_imagenet.benchmark.command import REFERENCE
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement, autocast_for, set_norm_replicas
from sn_imagenet.models import build_model
from sn_imagenet.models.mini import LAYERS as MINI_LAYERS
from sn_imagenet.models.mini import build_mini
from sn_imagenet.tasks import Clock, build_task
from sn_imagenet.training import Stepper
from sn_imagenet.training.compiled import raise_recompile_limits

_LEARNING_RATE = 1e-3  # too small to diverge on noise images


def _group_norm(channels: int, **factory: Any) -> nn.Module:
    return nn.GroupNorm(math.gcd(32, channels), channels, **factory)


PYTORCH_LAYERS: dict[str, Callable[..., nn.Module]] = {
    REFERENCE: nn.BatchNorm2d,
    "nn.GroupNorm(32)": _group_norm,
}
"""PyTorch's layers for timm's unmodified network, over the whole batch."""


@dataclass(frozen=True)
class StepKind:
    """The common properties of the contenders of a comparison. The batch has ``replicas`` times
    ``samples`` images; contenders with one set of statistics normalize over all of them."""

    replicas: int
    samples: int
    image_size: int
    dtype: str = "fp32"
    network: str = "resnet50"
    classes: int = 1000

    @property
    def total(self) -> int:
        """Images per step."""
        return self.replicas * self.samples

    @property
    def setting(self) -> str:
        """``16``, or ``(8,2)`` for several replicas."""
        return f"({self.replicas},{self.samples})" if self.replicas > 1 else f"{self.samples}"

    @property
    def overrides(self) -> list[str]:
        """Overrides with which train.py would train this."""
        return [
            f"model.name={self.network}",
            f"batch.gpus={self.replicas}",
            f"batch.samples_per_gpu={self.samples}",
            f"trainer.precision={self.dtype}",
        ]

    def __str__(self) -> str:
        return f"{self.network}, {self.setting} at {self.image_size} px, {self.dtype}"


class StepData:
    """One batch of noise and random labels on the device, channels_last as in training."""

    def __init__(self, kind: StepKind, device: torch.device) -> None:
        self.kind, self.device = kind, device
        self.autocast = autocast_for(kind.dtype, device)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(kind.total, 3, kind.image_size, kind.image_size, generator=generator)
        labels = torch.randint(kind.classes, (kind.total,), generator=generator)
        self.images = images.to(device, memory_format=torch.channels_last)
        self.labels = labels.to(device)

    def to_device(self, network: nn.Module) -> nn.Module:
        """Move ``network`` to the device, channels_last, in training mode."""
        return network.to(self.device).to(memory_format=torch.channels_last).train()


@dataclass(frozen=True)
class StepContender:
    """``forward`` is the first forward pass of a step, ``step`` the whole step."""

    network: nn.Module
    forward: Callable[[], Tensor]
    step: Callable[[], None]


def timm_step(
    layer: Callable[..., nn.Module], data: StepData, mode: str | None = None
) -> StepContender:
    """Step of timm's network with one of the :data:`PYTORCH_LAYERS`, and torch's SGD.

    ``mode``: mode of torch.compile; None runs the network eagerly.
    """
    name, classes = data.kind.network, data.kind.classes
    if name in MINI_LAYERS:
        network = build_mini(name, classes, layer)
    else:
        network = timm.create_model(name, num_classes=classes, norm_layer=layer)
    network = data.to_device(network)
    if mode is not None:
        raise_recompile_limits()
        network.compile(mode=mode, fullgraph=True, dynamic=False)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=_LEARNING_RATE, momentum=0.9, weight_decay=1e-4
    )
    return _plain_step(network, optimizer, data)


def trainer_step(config: ExperimentConfig, data: StepData, plain: bool = False) -> StepContender:
    """The trainer's step: :class:`Stepper` with :func:`build_model`'s network.

    ``plain``: use its network and optimizer in the same step as timm's, which reads no loss and so
    can be captured in a CUDA graph.
    """
    classes = data.kind.classes
    network = data.to_device(
        build_model(config.model, config.norm, config.protocol, classes, config.seed)
    )
    placement = Placement(
        config.batch.gpus,
        config.batch.samples_per_gpu,
        replicas_per_pass=config.trainer.replicas_per_pass,
    )
    batch, task = ImageBatch(data.images, data.labels), build_task(config)
    stepper = Stepper(task, network, config, placement, data.device, Clock(1, 1))
    (name, optimization), *_ = stepper.optimizations.items()
    # The rate of the other contenders, so that weights stay finite over many steps on one batch.
    stepper.optimizations[name] = replace(optimization, learning_rate=lambda _: _LEARNING_RATE)
    first = next(placement.microbatches(batch))
    set_norm_replicas(network, first, None)
    if plain:
        return _plain_step(network, optimization.optimizer, data)

    def forward() -> Tensor:
        with data.autocast():
            y: Tensor = network(first.batch.images)
        return y

    def step() -> None:
        stepper.forward_backward(batch, 0)
        stepper.optimizer_step(0)

    return StepContender(network, forward, step)


def _plain_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, data: StepData
) -> StepContender:
    def forward() -> Tensor:
        with data.autocast():
            y: Tensor = network(data.images)
        return y

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        with data.autocast():
            loss = F.cross_entropy(network(data.images), data.labels)
        loss.backward()
        optimizer.step()

    return StepContender(network, forward, step)
