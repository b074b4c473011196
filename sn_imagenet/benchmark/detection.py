"""Times a detector's training step against PyTorch's group norm, and COCO's evaluation."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from sn_imagenet.benchmark.command import (
    Command,
    Report,
    align_columns,
    compose_config,
)
from sn_imagenet.benchmark.timing import StorageLog, median_seconds, synchronize
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.distributed import Placement
from sn_imagenet.norms import GroupNorm2d, norm_layers
from sn_imagenet.tasks import Clock, build_task
from sn_imagenet.training import Stepper

REFERENCE = "nn.GroupNorm(32)"


def with_pytorch_layers(network: nn.Module) -> nn.Module:
    """``network`` with nn.GroupNorm in place of each of our group norms, which fuse no ReLU."""
    for name, layer in norm_layers(network).items():
        assert isinstance(layer, GroupNorm2d) and not layer.relu
        parent, _, child = name.rpartition(".")
        groups = layer.num_groups
        setattr(network.get_submodule(parent), child, nn.GroupNorm(groups, layer.num_features))
    return network


class Contender:
    """A detector and the step that trains it on one batch of the data."""

    def __init__(
        self, config: ExperimentConfig, device: torch.device, pytorch_layers: bool = False
    ) -> None:
        task: Any = build_task(config)
        self.data = task.datasets()
        network = task.network(self.data)
        if pytorch_layers:
            network = with_pytorch_layers(network)
        self.task, self.device = task, device
        self.network = network.to(device).to(memory_format=torch.channels_last)
        gpus, samples = config.batch.gpus, config.batch.samples_per_gpu
        placement = Placement(gpus, samples, replicas_per_pass=1)
        clock = Clock(1, 1_000_000)  # the first steps of a long warm-up change little
        self.stepper = Stepper(task, self.network, config, placement, device, clock)
        self.batch = next(task.batches("train", self.data, device).epoch(0))

    def step(self) -> None:
        self.stepper.forward_backward(self.batch, 0)
        self.stepper.optimizer_step(0)

    def kept_bytes(self) -> int:
        """Bytes that a forward pass of one replica keeps for backward."""
        count = self.stepper._placement.samples_per_gpu
        part = self.batch.select(torch.arange(count)).to(self.device)
        self.network.train()
        with StorageLog() as log:
            losses = self.network(list(part.images), list(part.targets))
        return log.live_bytes(*losses.values(), *self.network.parameters(), *self.network.buffers())

    def evaluation_seconds(self, images: int) -> tuple[float, float]:
        """Seconds of the forward passes over ``images`` validation images, and of everything else:
        reading, encoding masks, gathering and COCO's numbers."""
        network, in_forward = self.network.eval(), 0.0

        def forward(inputs: Any) -> Any:
            nonlocal in_forward
            start = time.perf_counter()
            output = network(inputs)
            synchronize(self.device)
            in_forward += time.perf_counter() - start
            return output

        evaluator = self.task.evaluator(self.data, self.device, 1, {})
        batches = self.task.evaluation_batches(self.data, 1, self.device)
        start = time.perf_counter()
        with torch.no_grad():
            for batch in islice(batches, images):
                evaluator.update(forward, batch)
        evaluator.gather()
        return in_forward, time.perf_counter() - start - in_forward


def _measure(args: Namespace, device: torch.device) -> Report:
    chosen = ["task=detection", *args.overrides]

    def config(*more: str) -> ExperimentConfig:
        return compose_config(args.configs, [*chosen, *more])

    contenders = {norm.upper(): Contender(config(f"norm={norm}"), device) for norm in args.norm}
    plain = config("norm=gn", "model.fuse_relu=false")
    contenders[REFERENCE] = Contender(plain, device, pytorch_layers=True)
    kept = {name: contender.kept_bytes() for name, contender in contenders.items()}
    seconds = median_seconds(
        {name: partial(Contender.step, one) for name, one in contenders.items()},
        args.repeats,
        device,
    )
    facts: dict[str, Any] = {
        "config": plain.to_dict(),
        "seconds": seconds,
        "ratios": {name: value / seconds[REFERENCE] for name, value in seconds.items()},
        "kept": kept,
    }
    rows: list[Sequence[str]] = [[plain.model.name, "ms", "ratio", "kept MB per replica"]]
    for name, value in seconds.items():
        ratio = f"{facts['ratios'][name]:.2f}"
        rows.append([name, f"{value * 1e3:.0f}", ratio, f"{kept[name] / 1e6:.0f}"])
    table = align_columns(rows)
    if args.evaluate:
        forward, other = contenders[REFERENCE].evaluation_seconds(args.evaluate)
        share = other / (forward + other)
        facts["evaluation"] = {"images": args.evaluate, "forward": forward, "other": other}
        table += f"\n\nevaluation: {share:.0%} of the time is not the network's"
    return facts, table


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--norm", nargs="+", default=["gn", "sn"], help="as in train.py")
    parser.add_argument(
        "--evaluate", type=int, default=0, metavar="N", help="also evaluate N validation images"
    )


COMMAND = Command(
    "a detector's training step, against nn.GroupNorm",
    _add_arguments,
    _measure,
    overrides="as for train.py: data, model and batch",
)
