"""A whole training beside its loader alone and its step alone: which of them bounds it."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sn_imagenet.benchmark.compose import composed
from sn_imagenet.benchmark.report import Command, Report, aligned
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.loaders import TrainLoader, train_loader
from sn_imagenet.distributed import Placement
from sn_imagenet.errors import UserError
from sn_imagenet.evaluation import Prepared, prepare
from sn_imagenet.runs import RunDirectory
from sn_imagenet.training import Stepper, train


@dataclass(frozen=True)
class Throughput:
    """Of one configuration in one process, in images/s; medians of the rounds.

    Attributes:
        batch: images per step.
        workers: loader processes; without any, loader and step take turns.
        steps_per_epoch: of the training.
        loader: batches fetched and thrown away.
        step: one batch over and over: to the device, forward, backward, update.
        training: the run that train.py makes, its logging included; no validation, no checkpoint.
        data_wait_pct: of the training's time, as it reports it.
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
        """Images/s if nothing else took time: in turn without workers, else side by side."""
        if self.workers:
            return min(self.loader, self.step)
        return 1 / (1 / self.loader + 1 / self.step)

    @property
    def bound(self) -> str:
        """What takes longer, ``loader`` or ``step``."""
        return "loader" if self.loader < self.step else "step"

    def as_dict(self) -> dict[str, Any]:
        share = self.training / self.limit
        return {**asdict(self), "limit": self.limit, "bound": self.bound, "limit_share": share}

    def table(self, title: str) -> str:
        """Rows of images/s and milliseconds per step, and a sentence."""
        together = f"both, {'side by side' if self.workers else 'in turn'}"
        speeds = {"loader alone": self.loader, "step alone": self.step, together: self.limit}
        speeds["training"] = self.training
        rows = [[title, "images/s", "ms per step"]]
        rows += [
            [name, f"{speed:.1f}", f"{1e3 * self.batch / speed:.2f}"]
            for name, speed in speeds.items()
        ]
        slow, fast = sorted((self.loader, self.step))
        other = "step" if self.bound == "loader" else "loader"
        return (
            f"{aligned(rows)}\nbound by the {self.bound}: the {other} alone is "
            f"{fast / slow:.1f} times as fast. Training comes to "
            f"{100 * self.training / self.limit:.0f} % of both, and waits "
            f"{self.data_wait_pct:.0f} % of its time for data."
        )


def measure_training(
    configs: Path, overrides: Sequence[str], steps: int, repeats: int
) -> tuple[ExperimentConfig, Throughput]:
    """Measure what ``train.py OVERRIDES`` would run, in this process.

    Each of ``repeats`` rounds trains a new run in a temporary folder for ``steps`` steps, fetches
    as many batches and repeats as many steps. What precedes the first report of the training
    (``trainer.log_every`` steps), and as many of the others, warm up and do not count.

    Raises:
        UserError: too few steps for two reports; whatever train.py would refuse.
    """
    config = composed(configs, overrides)
    warm_up = config.trainer.log_every
    if steps < 2 * warm_up:
        raise UserError(
            f"--steps {steps}: expected at least two reports, {2 * warm_up} steps; or add "
            f"trainer.log_every={max(steps // 2, 1)}"
        )
    placement = Placement(
        config.batch.gpus,
        config.batch.samples_per_gpu,
        replicas_per_pass=config.trainer.replicas_per_pass,
    )
    prepared = prepare(config)
    loader = train_loader(
        prepared.data.train,
        global_batch=config.batch.total,
        rank=0,
        world_size=1,
        seed=config.seed,
        workers=config.data.workers,
        device=prepared.device,
    )
    possible = len(loader) * config.trainer.epochs
    if steps > possible:
        raise UserError(
            f"--steps {steps}: the whole training has {possible}; expected at most as many, or "
            "more trainer.epochs"
        )
    step = _step(prepared, placement, loader)
    timed = steps - warm_up
    rounds = []
    for _ in range(repeats):
        trained, waited = _train(configs, overrides, steps, warm_up)
        batches = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
        fetched = _speed(partial(next, batches), warm_up, timed, prepared)
        rounds.append((fetched, _speed(step, warm_up, timed, prepared), trained, waited))
    medians = [statistics.median(values) for values in zip(*rounds, strict=True)]
    return config, Throughput(config.batch.total, config.data.workers, len(loader), *medians)


def _speed(call: Callable[[], object], warm_up: int, calls: int, prepared: Prepared) -> float:
    """Images/s of ``call``, which takes one batch."""
    for _ in range(warm_up):
        call()
    _synchronize(prepared.device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize(prepared.device)
    return calls * prepared.config.batch.total / (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _step(prepared: Prepared, placement: Placement, loader: TrainLoader) -> Callable[[], object]:
    config = prepared.config
    stepper = Stepper(prepared.network, config, placement, prepared.device)
    images, labels = next(loader.epoch(0))

    def step() -> None:
        stepper.forward_backward(images, labels, 0)
        stepper.optimizer_step(config.initial_lr)

    return step


def _train(
    configs: Path, overrides: Sequence[str], steps: int, warm_up: int
) -> tuple[float, float]:
    """Images/s after the warm-up, and the percentage of the time spent waiting for data."""
    with TemporaryDirectory() as folder:
        run = [f"trainer.max_steps={steps}", "evaluate=false", f"run_dir={folder}/run"]
        config = composed(configs, [*overrides, *run])
        train(config)
        lines = RunDirectory(Path(config.run_dir)).metrics.read_text().splitlines()
    images = seconds = waited = 0.0
    for row in map(json.loads, lines):
        if row["kind"] == "train" and row["step"] > warm_up:
            taken = row["steps"] * config.batch.total / row["images_per_s"]
            images += row["steps"] * config.batch.total
            seconds += taken
            waited += taken * row["data_wait_pct"]
    return images / seconds, waited / seconds


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="the run, as train.py takes it: data=digits model=resnet50_mini batch=8x2 norm=sn",
    )
    parser.add_argument("--steps", type=int, default=200, help="of each round; default 200")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median counts")


def _measure(args: Namespace, device: torch.device) -> Report:
    overrides = [*args.overrides, f"trainer.device={device.type}"]
    config, throughput = measure_training(args.configs, overrides, args.steps, args.repeats)
    title = (
        f"{config.data.name}, {config.model.name}, {config.norm.name} {config.batch.name}, "
        f"{config.data.workers} workers, {device.type}"
    )
    facts = {
        "overrides": args.overrides,
        "steps": args.steps,
        "repeats": args.repeats,
        "title": title,
        "config": config.to_dict(),
        **throughput.as_dict(),
    }
    return Report(facts, throughput.table(title))


COMMAND = Command(
    "images/s of a whole training, beside its loader alone and its step alone",
    _add_arguments,
    _measure,
    plots=False,
)
