"""Times the trainer's training step of a setting against timm's network with PyTorch's layers."""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sn_imagenet.benchmark.command import (
    ONLY,
    REFERENCE,
    Command,
    Report,
    align_columns,
    choose,
    compose_config,
    parse_setting,
)
from sn_imagenet.benchmark.timing import WARM_UP, StorageLog, median_seconds
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import (
    autocast_for,
    convolution_dtype,
    set_norm_replicas,
    set_precision,
)
from sn_imagenet.errors import UserError
from sn_imagenet.models import build_model
from sn_imagenet.models.mini import LAYERS as MINI_LAYERS
from sn_imagenet.models.mini import build_mini
from sn_imagenet.tasks import Clock, build_task
from sn_imagenet.tasks.task import require_task_placement
from sn_imagenet.training import Stepper

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
    """One batch of noise and random labels on the device, with the images' dtype and layout in
    training."""

    def __init__(self, kind: StepKind, device: torch.device) -> None:
        self.kind, self.device = kind, device
        self.autocast = autocast_for(kind.dtype, device)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(kind.total, 3, kind.image_size, kind.image_size, generator=generator)
        labels = torch.randint(kind.classes, (kind.total,), generator=generator)
        dtype = convolution_dtype(kind.dtype)
        self.images = images.to(device, dtype, memory_format=torch.channels_last)
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


def timm_step(layer: Callable[..., nn.Module], data: StepData) -> StepContender:
    """Step of timm's network with one of the :data:`PYTORCH_LAYERS`, and torch's SGD."""
    name, classes = data.kind.network, data.kind.classes
    if name in MINI_LAYERS:
        network = build_mini(name, classes, layer)
    else:
        network = timm.create_model(name, num_classes=classes, norm_layer=layer)
    network = data.to_device(network)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=_LEARNING_RATE, momentum=0.9, weight_decay=1e-4
    )

    def forward() -> Tensor:
        with data.autocast():
            y: Tensor = network(data.images)
        return y

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with data.autocast():
            loss = F.cross_entropy(network(data.images), data.labels)
        loss.backward()
        optimizer.step()

    return StepContender(network, forward, step)


def trainer_step(config: ExperimentConfig, data: StepData) -> StepContender:
    """The trainer's step: :class:`Stepper` with :func:`build_model`'s network."""
    classes = data.kind.classes
    network = data.to_device(
        build_model(config.model, config.norm, config.protocol, classes, config.seed)
    )
    batch, task = ImageBatch(data.images, data.labels), build_task(config)
    placement = require_task_placement(task, config, world_size=1)
    stepper = Stepper(task, network, config, placement, data.device, Clock(1, 1))
    (name, optimization), *_ = stepper.optimizations.items()
    # The rate of the other contenders, so that weights stay finite over many steps on one batch.
    stepper.optimizations[name] = replace(optimization, learning_rate=lambda _: _LEARNING_RATE)
    first = next(placement.microbatches(batch))
    set_norm_replicas(network, first, None)

    def forward() -> Tensor:
        with data.autocast():
            y: Tensor = network(first.batch.images)
        return y

    def step() -> None:
        stepper.step(batch, 0)
        list(stepper.outcomes(wait=False))  # as in training

    return StepContender(network, forward, step)


def check(kind: StepKind, device: torch.device) -> None:
    """Check a kind before anything slow starts, and set its precision.

    Raises:
        UserError: the network is unknown, or the device lacks the precision.
    """
    if kind.network not in MINI_LAYERS and not timm.is_model(kind.network):
        raise UserError(
            f"--network {kind.network}: expected {', '.join(MINI_LAYERS)} or a timm model"
        )
    set_precision(kind.dtype, device)


def measure_steps(
    kind: StepKind,
    configs: Path,
    device: torch.device,
    repeats: int,
    methods: Sequence[str] = ("bn", "gn", "sn"),
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Time one kind of step on random images under each method, a value of ``norm``.

    PyTorch's layers run in timm's network, over the whole batch. Ours run in the trainer's step as
    train.py would configure it; SN with several replicas also with one replica per pass.

    Args:
        only: names of contenders to time beside nn.BatchNorm2d; empty for all.

    Returns:
        By contender: median ``seconds`` of a step, bytes that a forward pass ``kept`` for backward,
        time relative to nn.BatchNorm2d over the whole batch (``ratios``), and
        ``images_per_second``. On CUDA also the ``peak_memory`` of a step in bytes, with weights,
        gradients and momentum, and ``device_seconds``, in which its kernels run: the rest of a step
        waits for Python.

    Raises:
        UserError: a contender does not exist.
    """
    data = StepData(kind, device)
    kept: dict[str, int] = {}
    peak_memory: dict[str, int] = {}
    device_seconds: dict[str, float] = {}
    steps: dict[str, Callable[[], object]] = {}
    makers = choose(_contenders(data, configs, methods, overrides), only)
    for name, make in makers.items():
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        contender = make()
        kept[name] = _kept_bytes(contender)
        steps[name] = contender.step
        if device.type == "cuda":
            peak_memory[name] = _peak_memory(contender.step, device) - before
            device_seconds[name] = _device_seconds(contender.step)
    seconds = median_seconds(steps, repeats, device)
    return {
        "title": str(kind),
        "kind": asdict(kind),
        "seconds": seconds,
        "device_seconds": device_seconds,
        "kept": kept,
        "peak_memory": peak_memory,
        "ratios": {name: value / seconds[REFERENCE] for name, value in seconds.items()},
        "images_per_second": {name: kind.total / value for name, value in seconds.items()},
    }


def _contenders(
    data: StepData, configs: Path, methods: Sequence[str], overrides: Sequence[str]
) -> dict[str, Callable[[], StepContender]]:
    """Functions that make the contenders, one after the other to measure the memory of each."""
    kind = data.kind
    makers: dict[str, Callable[[], StepContender]] = {
        name: partial(timm_step, layer, data) for name, layer in PYTORCH_LAYERS.items()
    }
    for method in methods:
        name = f"{method.upper()} {kind.setting}" if kind.replicas > 1 else method.upper()
        chosen = [f"norm={method}", *kind.overrides, *overrides]
        config = compose_config(configs, chosen)
        makers[name] = partial(trainer_step, config, data)
        if method == "sn" and kind.replicas > 1 and not config.trainer.graph:
            separate = compose_config(configs, [*chosen, "trainer.replicas_per_pass=1"])
            makers[f"{name} in {kind.replicas} passes"] = partial(trainer_step, separate, data)
    return makers


def _kept_bytes(contender: StepContender) -> int:
    network = contender.network
    with StorageLog() as log:
        y = contender.forward()
    return log.live_bytes(y, *network.parameters(), *network.buffers())


def _peak_memory(step: Callable[[], object], device: torch.device) -> int:
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


def _device_seconds(step: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        step()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6


def steps_table(cases: Sequence[dict[str, Any]]) -> str:
    """A table per batch: milliseconds, images/s, the ratio to nn.BatchNorm2d's time, megabytes
    kept by forward, and on CUDA the peak in megabytes."""
    tables = []
    for case in cases:
        rows = [[case["title"], "ms", "device ms", "images/s", "ratio", "kept MB", "peak MB"]]
        for name, seconds in case["seconds"].items():
            speed, ratio = case["images_per_second"][name], case["ratios"][name]
            device = case["device_seconds"].get(name)
            on_device = "" if device is None else f"{device * 1e3:.1f}"
            memory = (_megabytes(case[table].get(name)) for table in ("kept", "peak_memory"))
            rows.append(
                [name, f"{seconds * 1e3:.1f}", on_device, f"{speed:.1f}", f"{ratio:.2f}", *memory]
            )
        tables.append(align_columns(rows))
    return "\n\n".join(tables)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        type=parse_setting,
        nargs="+",
        default=[(1, 16)],
        metavar="N",
        help="images per step; 8x2 is the setting of 8 replicas of 2 samples; default 16",
    )
    parser.add_argument("--norm", nargs="+", default=["bn", "gn", "sn"], help="as in train.py")
    parser.add_argument("--only", **ONLY)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--network", default="resnet50", help="train.py's model.name")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "tf32", "bf16"), default=["fp32"])


def _measure(args: Namespace, device: torch.device) -> Report:
    kinds = [
        StepKind(replicas, samples, args.image_size, dtype, args.network, args.classes)
        for dtype in args.dtype
        for replicas, samples in args.batch
    ]
    for kind in kinds:
        check(kind, device)
    cases = []
    for kind in kinds:
        print(kind, file=sys.stderr)
        options = args.norm, args.overrides, args.only
        cases.append(measure_steps(kind, args.configs, device, args.repeats, *options))
    return {"reference": REFERENCE, "cases": cases}, steps_table(cases)


COMMAND = Command(
    "the training step of a setting against timm's network with nn.BatchNorm2d",
    _add_arguments,
    _measure,
    overrides="of our networks' configuration, as for train.py: trainer.graph=true",
)
