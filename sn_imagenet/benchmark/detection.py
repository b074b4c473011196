"""Times a detector's training step against PyTorch's group norm, and COCO's evaluation."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from typing import Any

import torch
from torch import nn

from sn_imagenet.benchmark.command import Command, Report, align_columns, compose_config
from sn_imagenet.benchmark.timing import StorageLog, median_seconds, synchronize
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.evaluation import validate
from sn_imagenet.norms import GroupNorm2d, norm_layers
from sn_imagenet.tasks import Clock, prepare
from sn_imagenet.tasks.task import require_task_placement
from sn_imagenet.training import Stepper

REFERENCE = "nn.GroupNorm(32)"


def use_pytorch_layers(network: nn.Module) -> None:
    """Put nn.GroupNorm in place of each of our group norms, which fuse no ReLU."""
    for name, layer in norm_layers(network).items():
        assert isinstance(layer, GroupNorm2d) and not layer.relu
        parent, _, child = name.rpartition(".")
        theirs = nn.GroupNorm(layer.num_groups, layer.num_features)
        setattr(network.get_submodule(parent), child, theirs)


class Contender:
    """A detector and the step that trains it on one batch of the data."""

    def __init__(self, config: ExperimentConfig, pytorch_layers: bool = False) -> None:
        self.prepared = prepare(config)
        task, device = self.prepared.task, self.prepared.device
        self.network = self.prepared.network
        if pytorch_layers:
            use_pytorch_layers(self.network)
            self.network.to(device)
        self.placement = require_task_placement(task, config, world_size=1)
        clock = Clock(1, 1_000_000)  # the first steps of a long warm-up change little
        self.stepper = Stepper(task, self.network, config, self.placement, device, clock)
        self.batch: Any = next(task.batches("train", self.prepared.data, device).epoch(0))

    def step(self) -> None:
        self.stepper.forward_backward(self.batch, 0)
        self.stepper.optimizer_step(0)

    def kept_bytes(self) -> int:
        """Bytes that a forward pass of one replica keeps for backward."""
        part = next(self.placement.microbatches(self.batch)).batch
        self.network.train()
        with StorageLog() as log:
            losses = self.network(list(part.images), list(part.targets))
        return log.live_bytes(*losses.values(), *self.network.parameters(), *self.network.buffers())

    def evaluation_seconds(self) -> tuple[float, float]:
        """Seconds of the forward passes over the validation images, and of everything else:
        reading, encoding masks, gathering and COCO's numbers."""
        device, times = self.prepared.device, [time.perf_counter()]

        def record(*_: Any) -> None:
            synchronize(device)
            times.append(time.perf_counter())

        before = self.network.register_forward_pre_hook(record)
        after = self.network.register_forward_hook(record)
        validate(self.prepared)
        before.remove()
        after.remove()
        forward = sum(times[2::2]) - sum(times[1::2])
        return forward, time.perf_counter() - times[0] - forward


def _measure(args: Namespace, device: torch.device) -> Report:
    def config(*more: str) -> ExperimentConfig:
        chosen = ["task=detection", f"trainer.device={device.type}", *args.overrides, *more]
        return compose_config(args.configs, chosen)

    contenders = {norm.upper(): Contender(config(f"norm={norm}")) for norm in args.norm}
    plain = config("norm=gn", "model.fuse_relu=false")
    contenders[REFERENCE] = Contender(plain, pytorch_layers=True)
    kept = {name: contender.kept_bytes() for name, contender in contenders.items()}
    steps = {name: contender.step for name, contender in contenders.items()}
    seconds = median_seconds(steps, args.repeats, device)
    ratios = {name: value / seconds[REFERENCE] for name, value in seconds.items()}
    facts: dict[str, Any] = {"reference": REFERENCE, "config": plain.to_dict()}
    facts |= {"seconds": seconds, "ratios": ratios, "kept": kept}
    rows = [[plain.model.name, "ms", "ratio", "kept MB per replica"]]
    for name, value in seconds.items():
        rows.append([name, f"{value * 1e3:.0f}", f"{ratios[name]:.2f}", f"{kept[name] / 1e6:.0f}"])
    table = align_columns(rows)
    if args.evaluate:
        forward, other = contenders[REFERENCE].evaluation_seconds()
        facts["evaluation"] = {"forward": forward, "other": other}
        share = other / (forward + other)
        table += f"\n\nevaluation: {share:.0%} of the time is not the network's"
    return facts, table


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--norm", nargs="+", default=["gn", "sn"], help="as in train.py")
    parser.add_argument("--evaluate", action="store_true", help="also time an evaluation")


COMMAND = Command(
    "a detector's training step, against nn.GroupNorm",
    _add_arguments,
    _measure,
    overrides="as for train.py: data, model and batch",
)
