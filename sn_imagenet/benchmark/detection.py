"""A detector's training step, against PyTorch's group norm, and COCO's evaluation."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from functools import partial
from typing import Any

import torch
from torch import nn

from sn_imagenet.benchmark.command import Report, compose_config
from sn_imagenet.benchmark.step import Step, compare_steps, steps_table, trainer_step
from sn_imagenet.benchmark.timing import synchronize
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.evaluation import validate
from sn_imagenet.norms import GroupNorm2d, norm_layers
from sn_imagenet.tasks import Prepared, prepare

REFERENCE = "nn.GroupNorm(32)"
OVERRIDES = "are those of train.py: data, model and batch"


def detector_step(config: ExperimentConfig, pytorch_layers: bool = False) -> Step:
    """The step on the first batch of the data. ``pytorch_layers``: nn.GroupNorm in place of each of
    our group norms, which fuse no ReLU."""
    prepared = prepare(config)
    task, network, device = prepared.task, prepared.network, prepared.device
    for name, layer in norm_layers(network).items() if pytorch_layers else ():
        assert isinstance(layer, GroupNorm2d) and not layer.relu
        parent, _, child = name.rpartition(".")
        theirs = nn.GroupNorm(layer.num_groups, layer.num_features).to(device)
        setattr(network.get_submodule(parent), child, theirs)
    batch = next(task.batches("train", prepared.data, device).epoch(0))
    return trainer_step(task, network, config, batch, device)


def evaluation_seconds(prepared: Prepared) -> dict[str, float]:
    """Seconds of the ``forward`` passes over the validation images, and of everything ``other``:
    reading, encoding masks, gathering and COCO's numbers."""
    times = [time.perf_counter()]

    def record(*_: Any) -> None:
        synchronize(prepared.device)
        times.append(time.perf_counter())

    prepared.network.register_forward_pre_hook(record)
    prepared.network.register_forward_hook(record)
    validate(prepared)
    forward = sum(times[2::2]) - sum(times[1::2])
    return {"forward": forward, "other": time.perf_counter() - times[0] - forward}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--norm", nargs="+", default=["gn", "sn"], help="as in train.py")
    parser.add_argument("--evaluate", action="store_true", help="also time an evaluation")


def measure(args: Namespace, device: torch.device) -> Report:
    def config(*more: str) -> ExperimentConfig:
        chosen = ["task=detection", f"trainer.device={device.type}", *args.overrides, *more]
        return compose_config(chosen)

    makers = {norm.upper(): partial(detector_step, config(f"norm={norm}")) for norm in args.norm}
    plain = config("norm=gn", "model.fuse_relu=false")
    makers[REFERENCE] = partial(detector_step, plain, pytorch_layers=True)
    case = compare_steps(makers, REFERENCE, plain.batch.total, device, args.repeats)
    case["title"] = plain.model.name
    facts = {"reference": REFERENCE, "config": plain.to_dict(), "cases": [case]}
    table = steps_table([case])
    if args.evaluate:
        seconds = evaluation_seconds(prepare(plain))
        facts["evaluation"] = seconds
        share = seconds["other"] / sum(seconds.values())
        table += f"\n\nevaluation: {share:.0%} of the time is not the network's"
    return facts, table
