"""The training step of a setting against timm's network with PyTorch's layers."""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sn_imagenet.benchmark.command import (
    REFERENCE,
    Report,
    add_only,
    align_columns,
    choose,
    compose_config,
    parse_setting,
)
from sn_imagenet.benchmark.timing import WARM_UP, StorageLog, median_seconds
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Batch, autocast_for, convolution_dtype, set_precision
from sn_imagenet.errors import UserError
from sn_imagenet.models import build_model
from sn_imagenet.models.mini import LAYERS as MINI_LAYERS
from sn_imagenet.models.mini import build_mini
from sn_imagenet.norms import set_replicas
from sn_imagenet.tasks import Clock, Task, build_task
from sn_imagenet.tasks.task import require_task_placement
from sn_imagenet.training import Stepper

OVERRIDES = "are of our networks' configuration, as for train.py: trainer.graph=true"
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


@dataclass(frozen=True)
class Step:
    """A training step on one batch: ``forward`` is its first forward pass, of which backward needs
    the result, ``run`` the whole step. ``network`` is in training mode."""

    network: nn.Module
    forward: Callable[[], Tensor]
    run: Callable[[], object]

    def kept_bytes(self) -> int:
        """Bytes that the first forward pass keeps for backward."""
        with StorageLog() as log:
            y = self.forward()
        return log.live_bytes(y, *self.network.parameters(), *self.network.buffers())


def noise(kind: StepKind, device: torch.device) -> ImageBatch:
    """A batch of noise and random labels, with the images' dtype and layout in training."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(kind.total, 3, kind.image_size, kind.image_size, generator=generator)
    labels = torch.randint(kind.classes, (kind.total,), generator=generator)
    dtype = convolution_dtype(kind.dtype)
    images = images.to(device, dtype, memory_format=torch.channels_last)
    return ImageBatch(images, labels.to(device))


def timm_step(
    layer: Callable[..., nn.Module], kind: StepKind, batch: ImageBatch, device: torch.device
) -> Step:
    """Step of timm's network with one of the :data:`PYTORCH_LAYERS`, and torch's SGD."""
    if kind.network in MINI_LAYERS:
        network = build_mini(kind.network, kind.classes, layer)
    else:
        network = timm.create_model(kind.network, num_classes=kind.classes, norm_layer=layer)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=_LEARNING_RATE, momentum=0.9, weight_decay=1e-4
    )
    autocast = autocast_for(kind.dtype, device)

    def forward() -> Tensor:
        with autocast():
            return F.cross_entropy(network(batch.images), batch.labels)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward().backward()
        optimizer.step()

    return Step(network, forward, run)


def trainer_step(
    task: Task, network: nn.Module, config: ExperimentConfig, batch: Batch, device: torch.device
) -> Step:
    """The trainer's step: :class:`Stepper` with a constant learning rate, so that the weights stay
    finite over many steps on one batch."""
    placement = require_task_placement(task, config, world_size=1)
    stepper = Stepper(task, network.train(), config, placement, device, Clock(1, 1))
    for name, optimization in stepper.optimizations.items():
        stepper.optimizations[name] = replace(optimization, learning_rate=lambda _: _LEARNING_RATE)
    first = next(placement.microbatches(batch.to(device)))
    set_replicas(network, first.replicas, holds_first_replica=first.holds_first_replica)
    autocast = autocast_for(config.trainer.precision, device)

    def forward() -> Tensor:
        with autocast():
            return task.losses(network, first, 0, task.phases[0]).loss

    def run() -> None:
        stepper.step(batch, 0)
        list(stepper.outcomes(wait=False))

    return Step(network, forward, run)


def measure_steps(
    kind: StepKind,
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
        See :func:`compare_steps`; the reference is nn.BatchNorm2d over the whole batch.

    Raises:
        UserError: a contender does not exist, or the device lacks the precision.
    """
    set_precision(kind.dtype, device)
    batch = noise(kind, device)

    def ours(config: ExperimentConfig) -> Step:
        network = build_model(config.model, config.norm, config.protocol, kind.classes, config.seed)
        network = network.to(device).to(memory_format=torch.channels_last)
        return trainer_step(build_task(config), network, config, batch, device)

    makers: dict[str, Callable[[], Step]] = {
        name: partial(timm_step, layer, kind, batch, device)
        for name, layer in PYTORCH_LAYERS.items()
    }
    for method in methods:
        name = f"{method.upper()} {kind.setting}" if kind.replicas > 1 else method.upper()
        chosen = [f"norm={method}", *kind.overrides, *overrides]
        config = compose_config(chosen)
        makers[name] = partial(ours, config)
        if method == "sn" and kind.replicas > 1 and not config.trainer.graph:
            separate = compose_config([*chosen, "trainer.replicas_per_pass=1"])
            makers[f"{name} in {kind.replicas} passes"] = partial(ours, separate)
    compared = compare_steps(choose(makers, only), REFERENCE, kind.total, device, repeats)
    return {"title": str(kind), "kind": asdict(kind), **compared}


def compare_steps(
    makers: Mapping[str, Callable[[], Step]],
    reference: str,
    images: int,
    device: torch.device,
    repeats: int,
) -> dict[str, Any]:
    """Make the steps of ``images`` images, one after the other to measure the memory of each, and
    time them.

    Returns:
        By contender: median ``seconds`` of a step, bytes that a forward pass ``kept`` for backward,
        time relative to the ``reference`` (``ratios``), and ``images_per_second``. On CUDA also the
        ``peak_memory`` of a step in bytes, with weights, gradients and momentum, and
        ``device_seconds``, in which its kernels run: the rest of a step waits for Python.
    """
    kept: dict[str, int] = {}
    peak_memory: dict[str, int] = {}
    device_seconds: dict[str, float] = {}
    steps: dict[str, Callable[[], object]] = {}
    for name, make in makers.items():
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        step = make()
        kept[name] = step.kept_bytes()
        steps[name] = step.run
        if device.type == "cuda":
            peak_memory[name] = _peak_memory(step.run, device) - before
            device_seconds[name] = _device_seconds(step.run)
    seconds = median_seconds(steps, repeats, device)
    return {
        "seconds": seconds,
        "device_seconds": device_seconds,
        "kept": kept,
        "peak_memory": peak_memory,
        "ratios": {name: value / seconds[reference] for name, value in seconds.items()},
        "images_per_second": {name: images / value for name, value in seconds.items()},
    }


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
    """A table per case: milliseconds, images/s, the ratio to the reference's time, megabytes that
    forward keeps, and on CUDA the peak in megabytes."""
    tables = []
    for case in cases:
        rows = [[case["title"], "ms", "device ms", "images/s", "ratio", "kept MB", "peak MB"]]
        for name in case["seconds"]:
            columns = (
                _scaled(case["seconds"], name, 1e3, 1),
                _scaled(case["device_seconds"], name, 1e3, 1),
                _scaled(case["images_per_second"], name, 1, 1),
                _scaled(case["ratios"], name, 1, 2),
                _scaled(case["kept"], name, 1e-6, 0),
                _scaled(case["peak_memory"], name, 1e-6, 0),
            )
            rows.append([name, *columns])
        tables.append(align_columns(rows))
    return "\n\n".join(tables)


def _scaled(values: Mapping[str, float], name: str, factor: float, digits: int) -> str:
    return f"{values[name] * factor:.{digits}f}" if name in values else ""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        type=parse_setting,
        nargs="+",
        default=[(1, 16)],
        metavar="N",
        help="images per step; 8x2 is the setting of 8 replicas of 2 samples; default 16",
    )
    parser.add_argument("--norm", nargs="+", default=["bn", "gn", "sn"], help="as in train.py")
    add_only(parser)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--network", default="resnet50", help="train.py's model.name")
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "tf32", "bf16"), default=["fp32"])


def measure(args: Namespace, device: torch.device) -> Report:
    kinds = [
        StepKind(replicas, samples, args.image_size, dtype, args.network, args.classes)
        for dtype in args.dtype
        for replicas, samples in args.batch
    ]
    if args.network not in MINI_LAYERS and not timm.is_model(args.network):
        names = ", ".join(MINI_LAYERS)
        raise UserError(f"--network {args.network}: expected {names} or a timm model")
    for kind in kinds:
        set_precision(kind.dtype, device)  # refuses it here, before anything slow starts
    cases = []
    for kind in kinds:
        print(kind, file=sys.stderr)
        options = args.norm, args.overrides, args.only
        cases.append(measure_steps(kind, device, args.repeats, *options))
    return {"reference": REFERENCE, "cases": cases}, steps_table(cases)
