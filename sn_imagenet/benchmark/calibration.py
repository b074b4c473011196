"""The batch average's calibration beside plain inference through the same loader."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sn_imagenet.benchmark.compose import composed
from sn_imagenet.benchmark.report import Command, Report, aligned
from sn_imagenet.benchmark.timing import CLOCKS, Clock, add_rounds, alternate
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.loaders import calibration_loader
from sn_imagenet.distributed import autocast_for
from sn_imagenet.errors import UserError
from sn_imagenet.evaluation import prepare
from sn_imagenet.evaluation.calibration import samples_that_share_statistics
from sn_imagenet.evaluation.evaluate import calibrated, eval_batch_size
from sn_imagenet.evaluation.prepare import stores_statistics
from sn_imagenet.norms import set_replicas


@dataclass(frozen=True)
class Cost:
    """Seconds of a pass over the same training images, read and augmented anew; medians.

    Attributes:
        images: of one pass.
        calibration: until all layers' statistics are there.
        inference: by stored statistics.
    """

    images: int
    calibration: float
    inference: float

    @property
    def ratio(self) -> float:
        return self.calibration / self.inference

    def table(self, title: str) -> str:
        """Rows of images/s and milliseconds per image."""
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
        return aligned(rows)


def measure(
    configs: Path, overrides: Sequence[str], repeats: int, clock: Clock
) -> tuple[ExperimentConfig, Cost]:
    """Measure what ``train.py OVERRIDES`` would calibrate at its end, with initial weights, which
    cost what trained ones do; in this process.

    Raises:
        UserError: the normalizer stores no statistics; whatever train.py would refuse.
    """
    config = composed(configs, overrides)
    prepared = prepare(config)
    network = prepared.network
    if not stores_statistics(network):
        raise UserError(
            f"norm={config.norm.name}: it stores no statistics, there is nothing to calibrate; "
            "expected one that does, such as norm=sn"
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

    seconds = alternate(
        {"inference": inference, "calibration": lambda: calibrated(prepared)},
        repeats,
        prepared.device,
        clock=clock,
    )
    return config, Cost(loader.samples_used, **seconds)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="the run, as train.py takes it: data=digits model=resnet50_mini batch=8x2 norm=sn "
        "calibration.samples=320",
    )
    add_rounds(
        parser, 5, "this process's own time, data.workers=0 alone; for a machine that others share"
    )


def _measure(args: Namespace, device: torch.device) -> Report:
    overrides = [*args.overrides, f"trainer.device={device.type}"]
    workers = composed(args.configs, overrides).data.workers
    if args.clock == "cpu" and workers:
        raise UserError(
            f"--clock cpu: counts this process alone, not its {workers} loader processes; add "
            "data.workers=0"
        )
    config, cost = measure(args.configs, overrides, args.repeats, CLOCKS[args.clock])
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
    return Report(facts, cost.table(title))


COMMAND = Command(
    "the batch average's calibration beside plain inference through the same loader",
    _add_arguments,
    _measure,
    plots=False,
)
