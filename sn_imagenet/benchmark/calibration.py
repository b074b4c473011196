"""Time of the batch average's calibration against plain inference through the same loader."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sn_imagenet.benchmark.command import (
    BenchmarkReport,
    Command,
    align_columns,
    compose_config,
)
from sn_imagenet.benchmark.timing import CLOCKS, Clock, time_interleaved
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.loaders import calibration_loader
from sn_imagenet.distributed import autocast_for
from sn_imagenet.errors import UserError
from sn_imagenet.evaluation import prepare
from sn_imagenet.evaluation.calibration import samples_that_share_statistics
from sn_imagenet.evaluation.evaluate import compute_batch_averages, eval_batch_size
from sn_imagenet.evaluation.prepare import stores_statistics
from sn_imagenet.norms import set_replicas


@dataclass(frozen=True)
class CalibrationCost:
    """Median seconds of one pass over the same training images, read and augmented in each pass.

    Attributes:
        images: images in one pass.
        calibration: seconds until the statistics of all layers are estimated.
        inference: seconds of evaluation with stored statistics.
    """

    images: int
    calibration: float
    inference: float

    @property
    def ratio(self) -> float:
        return self.calibration / self.inference

    def table(self, title: str) -> str:
        """A table of images/s and milliseconds per image."""
        rows = [[title, "images/s", "ms per image", "over inference"]]
        rows += [
            [
                name,
                f"{self.images / seconds:.1f}",
                f"{1e3 * seconds / self.images:.2f}",
                f"{seconds / self.inference:.2f}",
            ]
            for name, seconds in (("inference", self.inference), ("calibration", self.calibration))
        ]
        return align_columns(rows)


def measure_calibration(
    configs: Path, overrides: Sequence[str], repeats: int, clock: Clock
) -> tuple[ExperimentConfig, CalibrationCost]:
    """Time the calibration at the end of ``train.py OVERRIDES``, in this process. The weights are
    initial ones, which cost as much as trained ones.

    Raises:
        UserError: the normalization layers store no statistics, or train.py would refuse the run.
    """
    config = compose_config(configs, overrides)
    prepared = prepare(config)
    network = prepared.network
    if not stores_statistics(network):
        raise UserError(
            f"norm={config.norm.name} stores no statistics, so there is nothing to calibrate; "
            "expected a method that does, such as norm=sn"
        )
    minibatch = samples_that_share_statistics(network, config.batch)
    loader = calibration_loader(
        prepared.data.train,
        minibatch=minibatch,
        samples=config.calibration.samples,
        seed=config.calibration.seed,
        rank=0,
        world_size=1,
        minibatches_per_batch=max(1, eval_batch_size(config, prepared.device) // minibatch),
        workers=config.data.workers,
        device=prepared.device,
    )
    autocast = autocast_for(config.trainer.precision, prepared.device)

    @torch.no_grad()
    def inference() -> None:
        network.eval()
        set_replicas(network)
        for images, _ in loader:
            with autocast():
                network(images)

    seconds = time_interleaved(
        {"inference": inference, "calibration": lambda: compute_batch_averages(prepared)},
        repeats,
        prepared.device,
        clock=clock,
    )
    return config, CalibrationCost(loader.samples_used, **seconds)


def _measure(args: Namespace, device: torch.device) -> BenchmarkReport:
    overrides = [*args.overrides, f"trainer.device={device.type}"]
    workers = compose_config(args.configs, overrides).data.workers
    if args.clock == "cpu" and workers:
        raise UserError(
            f"--clock cpu counts only this process, not its {workers} loader processes; add "
            "data.workers=0"
        )
    config, cost = measure_calibration(args.configs, overrides, args.repeats, CLOCKS[args.clock])
    title = (
        f"{config.data.name}, {config.model.name}, {config.norm.name} {config.batch.name}, "
        f"{cost.images} images of {config.data.image_size} px, {config.data.workers} workers, "
        f"{device.type}"
    )
    facts: dict[str, Any] = {
        "overrides": args.overrides,
        "repeats": args.repeats,
        "clock": args.clock,
        "title": title,
        **asdict(cost),
        "ratio": cost.ratio,
    }
    return BenchmarkReport(facts, cost.table(title))


COMMAND = Command(
    "time of the batch average's calibration against plain inference through the same loader",
    lambda parser: None,
    _measure,
    repeats=5,
    overrides="of train.py that define the run: data=digits norm=sn calibration.samples=320",
    clock="requires data.workers=0",
)
