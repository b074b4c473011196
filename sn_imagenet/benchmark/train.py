"""A training run against its loader alone and its step alone, to find the bottleneck."""

from __future__ import annotations

import itertools
import json
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sn_imagenet.benchmark.command import Report, align_columns, compose_config
from sn_imagenet.benchmark.step import trainer_step
from sn_imagenet.benchmark.timing import seconds_per_call
from sn_imagenet.errors import UserError
from sn_imagenet.runs import RunDirectory
from sn_imagenet.tasks import Prepared, prepare
from sn_imagenet.training import train

OVERRIDES = "are those of train.py that define the run: data=digits model=resnet50_mini batch=8x2"


def measure_training(overrides: Sequence[str], steps: int, repeats: int) -> dict[str, Any]:
    """Time, in this process, the run of ``train.py OVERRIDES`` and its parts.

    Each of ``repeats`` rounds trains a new run in a temporary folder for ``steps`` steps, fetches
    as many batches and repeats as many steps. The steps up to the run's first report
    (``trainer.log_every``), and as many of the loader and of the step, are a warm-up.

    Returns:
        Medians of the rounds: images/s of fetching batches and discarding them (``loader``), of
        repeating one batch (``step``), and of train.py's run with logging, without validation and
        checkpoints (``training``); ``data_wait_pct``, the percentage of its time that the run
        reports as waiting for data. Also the config, images per step (``batch``), ``workers`` and
        ``steps_per_epoch``.

    Raises:
        UserError: there are too few steps for two reports, or train.py would refuse the run.
    """
    config = compose_config(overrides)
    warm_up = config.trainer.log_every
    if steps < 2 * warm_up:
        raise UserError(
            f"--steps {steps}: expected at least two reports, {2 * warm_up} steps; or add "
            f"trainer.log_every={max(steps // 2, 1)}"
        )
    prepared = prepare(config)
    task, device = prepared.task, prepared.device
    loaders = [task.batches(phase, prepared.data, device) for phase in task.phases]
    loader, steps_per_epoch = loaders[0], sum(map(len, loaders))
    available = steps_per_epoch * (config.trainer.epochs or 1)
    if steps > available:
        raise UserError(
            f"--steps {steps}: the run has only {available} steps; use fewer, or more "
            "trainer.epochs"
        )
    step = trainer_step(task, prepared.network, config, next(loader.epoch(0)), device)
    timed = steps - warm_up
    rounds = []
    for _ in range(repeats):
        trained, waited = _train(overrides, steps, warm_up)
        batches = itertools.chain.from_iterable(map(loader.epoch, itertools.count()))
        fetched = _image_rate(partial(next, batches), warm_up, timed, prepared)
        rounds.append((fetched, _image_rate(step.run, warm_up, timed, prepared), trained, waited))
    medians = map(statistics.median, zip(*rounds, strict=True))
    return {
        "steps": steps,
        "config": config.to_dict(),
        "batch": config.batch.total,
        "workers": config.data.workers,
        "steps_per_epoch": steps_per_epoch,
        **dict(zip(("loader", "step", "training", "data_wait_pct"), medians, strict=True)),
    }


def _image_rate(call: Callable[[], object], warm_up: int, calls: int, prepared: Prepared) -> float:
    """Images/s of ``call``, which processes one batch."""
    for _ in range(warm_up):
        call()
    return prepared.config.batch.total / seconds_per_call(call, calls, prepared.device)


def _train(overrides: Sequence[str], steps: int, warm_up: int) -> tuple[float, float]:
    """Images/s after the warm-up, and the percentage of the time spent waiting for data."""
    with TemporaryDirectory() as folder:
        run = [f"trainer.max_steps={steps}", "evaluate=false", f"run_dir={folder}/run"]
        config = compose_config([*overrides, *run])
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


def bottleneck(measured: dict[str, Any]) -> dict[str, Any]:
    """The slower part (``bound``: loader or step), images/s of loader and step alone (``limit``: in
    turn without workers, else in parallel), and the share of it that training reaches."""
    loader, step = measured["loader"], measured["step"]
    limit = min(loader, step) if measured["workers"] else 1 / (1 / loader + 1 / step)
    bound = "loader" if loader < step else "step"
    return {"limit": limit, "bound": bound, "limit_share": measured["training"] / limit}


def training_table(title: str, facts: dict[str, Any]) -> str:
    """A table of images/s and milliseconds per step, and a sentence on the bottleneck."""
    both = f"both, {'in parallel' if facts['workers'] else 'in turn'}"
    keys = {"loader alone": "loader", "step alone": "step", both: "limit", "training": "training"}
    rows = [[title, "images/s", "ms per step"]]
    for name, key in keys.items():
        rows.append([name, f"{facts[key]:.1f}", f"{1e3 * facts['batch'] / facts[key]:.2f}"])
    slow, fast = sorted((facts["loader"], facts["step"]))
    other = "step" if facts["bound"] == "loader" else "loader"
    return (
        f"{align_columns(rows)}\nbound by the {facts['bound']}: the {other} alone is "
        f"{fast / slow:.1f} times as fast. Training reaches {100 * facts['limit_share']:.0f} % of "
        f"the speed of both, and waits {facts['data_wait_pct']:.0f} % of its time for data."
    )


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=200, help="steps per round; default 200")
    parser.set_defaults(repeats=3)


def measure(args: Namespace, device: torch.device) -> Report:
    overrides = [*args.overrides, f"trainer.device={device.type}"]
    facts = measure_training(overrides, args.steps, args.repeats)
    facts |= bottleneck(facts)
    parts = ("data", "model", "norm", "batch")
    data, model, norm, batch = (facts["config"][part]["name"] for part in parts)
    facts["title"] = f"{data}, {model}, {norm} {batch}, {facts['workers']} workers, {device.type}"
    return facts, training_table(facts["title"], facts)
