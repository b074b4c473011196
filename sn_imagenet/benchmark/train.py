"""Times a training run against its loader alone and its step alone, to find the bottleneck."""

from __future__ import annotations

import itertools
import json
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sn_imagenet.benchmark.command import Command, Report, align_columns, compose_config
from sn_imagenet.benchmark.timing import seconds_per_call
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.loaders import BatchLoader
from sn_imagenet.distributed import Placement
from sn_imagenet.errors import UserError
from sn_imagenet.runs import RunDirectory
from sn_imagenet.tasks import Clock, Prepared, prepare
from sn_imagenet.tasks.task import require_task_placement
from sn_imagenet.training import Stepper, train


@dataclass(frozen=True)
class Throughput:
    """Images/s of one configuration in one process; medians of the rounds.

    Attributes:
        batch: images per step.
        workers: loader processes; with 0, loader and step take turns.
        steps_per_epoch: steps per epoch of the run.
        loader: images/s of fetching batches and discarding them.
        step: images/s of repeating one batch: to the device, forward, backward, update.
        training: images/s of train.py's run with logging, without validation and checkpoints.
        data_wait_pct: percentage of its time that the run reports as waiting for data.
    """

    batch: int
    workers: int
    steps_per_epoch: int
    loader: float
    step: float
    training: float
    data_wait_pct: float

    @property
    def limit(self) -> float:
        """Images/s of loader and step alone: in turn without workers, else in parallel."""
        if self.workers:
            return min(self.loader, self.step)
        return 1 / (1 / self.loader + 1 / self.step)

    @property
    def bound(self) -> str:
        """The slower part, ``loader`` or ``step``."""
        return "loader" if self.loader < self.step else "step"

    def as_dict(self) -> dict[str, Any]:
        share = self.training / self.limit
        return {**asdict(self), "limit": self.limit, "bound": self.bound, "limit_share": share}

    def table(self, title: str) -> str:
        """A table of images/s and milliseconds per step, and a sentence on the bottleneck."""
        both = f"both, {'in parallel' if self.workers else 'in turn'}"
        speeds = {"loader alone": self.loader, "step alone": self.step, both: self.limit}
        speeds["training"] = self.training
        rows = [[title, "images/s", "ms per step"]]
        rows += [
            [name, f"{speed:.1f}", f"{1e3 * self.batch / speed:.2f}"]
            for name, speed in speeds.items()
        ]
        slow, fast = sorted((self.loader, self.step))
        other = "step" if self.bound == "loader" else "loader"
        return (
            f"{align_columns(rows)}\nbound by the {self.bound}: the {other} alone is "
            f"{fast / slow:.1f} times as fast. Training reaches "
            f"{100 * self.training / self.limit:.0f} % of the speed of both, and waits "
            f"{self.data_wait_pct:.0f} % of its time for data."
        )


def measure_training(
    configs: Path, overrides: Sequence[str], steps: int, repeats: int
) -> tuple[ExperimentConfig, Throughput]:
    """Time, in this process, the run of ``train.py OVERRIDES`` and its parts.

    Each of ``repeats`` rounds trains a new run in a temporary folder for ``steps`` steps, fetches
    as many batches and repeats as many steps. The steps up to the run's first report
    (``trainer.log_every``), and as many of the loader and of the step, are a warm-up.

    Raises:
        UserError: there are too few steps for two reports, or train.py would refuse the run.
    """
    config = compose_config(configs, overrides)
    warm_up = config.trainer.log_every
    if steps < 2 * warm_up:
        raise UserError(
            f"--steps {steps}: expected at least two reports, {2 * warm_up} steps; or add "
            f"trainer.log_every={max(steps // 2, 1)}"
        )
    prepared = prepare(config)
    task = prepared.task
    placement = require_task_placement(task, config, world_size=1)
    loaders = [task.batches(phase, prepared.data, prepared.device) for phase in task.phases]
    loader, steps_per_epoch = loaders[0], sum(map(len, loaders))
    available = steps_per_epoch * (config.trainer.epochs or 1)
    if steps > available:
        raise UserError(
            f"--steps {steps}: the run has only {available} steps; use fewer, or more "
            "trainer.epochs"
        )
    step = _step(prepared, placement, loader)
    timed = steps - warm_up
    rounds = []
    for _ in range(repeats):
        trained, waited = _train(configs, overrides, steps, warm_up)
        batches = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
        fetched = _image_rate(partial(next, batches), warm_up, timed, prepared)
        rounds.append((fetched, _image_rate(step, warm_up, timed, prepared), trained, waited))
    medians = [statistics.median(values) for values in zip(*rounds, strict=True)]
    return config, Throughput(config.batch.total, config.data.workers, steps_per_epoch, *medians)


def _image_rate(call: Callable[[], object], warm_up: int, calls: int, prepared: Prepared) -> float:
    """Images/s of ``call``, which processes one batch."""
    for _ in range(warm_up):
        call()
    return prepared.config.batch.total / seconds_per_call(call, calls, prepared.device)


def _step(prepared: Prepared, placement: Placement, loader: BatchLoader) -> Callable[[], object]:
    config = prepared.config
    clock = Clock(len(loader), len(loader))
    stepper = Stepper(prepared.task, prepared.network, config, placement, prepared.device, clock)
    batch = next(loader.epoch(0))

    def step() -> None:
        stepper.step(batch, 0)
        list(stepper.outcomes(wait=False))

    return step


def _train(
    configs: Path, overrides: Sequence[str], steps: int, warm_up: int
) -> tuple[float, float]:
    """Images/s after the warm-up, and the percentage of the time spent waiting for data."""
    with TemporaryDirectory() as folder:
        run = [f"trainer.max_steps={steps}", "evaluate=false", f"run_dir={folder}/run"]
        config = compose_config(configs, [*overrides, *run])
        train(config)
        lines = RunDirectory(Path(config.run_dir)).metrics.read_text().splitlines()
    images = seconds = waited = 0.0
    for row in map(json.loads, lines):
        if row["kind"] == "train" and row["step"] > warm_up:
            duration = row["steps"] * config.batch.total / row["images_per_s"]
            images += row["steps"] * config.batch.total
            seconds += duration
            waited += duration * row["data_wait_pct"]
    return images / seconds, waited / seconds


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=200, help="steps per round; default 200")


def _measure(args: Namespace, device: torch.device) -> Report:
    overrides = [*args.overrides, f"trainer.device={device.type}"]
    config, throughput = measure_training(args.configs, overrides, args.steps, args.repeats)
    title = (
        f"{config.data.name}, {config.model.name}, {config.norm.name} {config.batch.name}, "
        f"{config.data.workers} workers, {device.type}"
    )
    facts = {
        "steps": args.steps,
        "title": title,
        "config": config.to_dict(),
        **throughput.as_dict(),
    }
    return facts, throughput.table(title)


COMMAND = Command(
    "images/s of a training run against its loader alone and its step alone",
    _add_arguments,
    _measure,
    repeats=3,
    overrides="of train.py that define the run: data=digits model=resnet50_mini batch=8x2",
)
