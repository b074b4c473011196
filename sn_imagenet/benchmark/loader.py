"""The loader beside torchvision's reference pipeline and beside decoding alone, images/s."""

from __future__ import annotations

import os
import random
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sn_imagenet.benchmark.compose import composed
from sn_imagenet.benchmark.report import Command, Report, aligned
from sn_imagenet.benchmark.timing import CLOCKS, Clock, add_rounds
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.datasets import build
from sn_imagenet.data.loaders import TrainLoader, train_loader
from sn_imagenet.data.sources import Source
from sn_imagenet.errors import UserError

REFERENCE = "torchvision's reference"
PILLOW = "Pillow's decoding alone"
LIMIT = "simplejpeg's decoding alone"
NORMALIZED = ", normalized"

Batches = Callable[[int], Iterable[object]]
"""``batches(epoch)``: the batches of one pass over the images."""


@dataclass(frozen=True)
class Speed:
    """Images/s of one contender with ``workers`` loader processes, one core for each: the median
    of the rounds, the slowest and the fastest."""

    contender: str
    workers: int
    images_per_s: float
    slowest: float
    fastest: float


def contenders(
    config: Callable[[str], ExperimentConfig], folder: Path, batch: int, workers: int
) -> dict[str, Batches]:
    """By name, what passes over all images but the last partial batch, in random order.

    Args:
        config: by ``data.decode``.
        folder: of class folders.
    """
    data = config("exact").data
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(data.image_size),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
            v2.ToPureTensor(),
        ]
    )

    def others(dataset: Dataset[Any], **options: Any) -> Batches:
        loader = DataLoader(
            dataset,
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            **options,
        )
        return lambda epoch: loader

    exact, fast = (_ours(config(decode), batch, workers) for decode in ("exact", "fast"))
    source = build(data, config("exact").augment, seed=0).train.source
    return {
        REFERENCE: others(ImageFolder(folder, reference)),
        PILLOW: others(ImageFolder(folder), collate_fn=len),
        LIMIT: others(_Decoded(source), collate_fn=len),
        "exact": _as_stored(exact),
        f"exact{NORMALIZED}": exact.epoch,
        "fast": _as_stored(fast),
        f"fast{NORMALIZED}": fast.epoch,
    }


class _Decoded(Dataset[Any]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> object:
        return self.source.open(index).pixels()


def _ours(config: ExperimentConfig, batch: int, workers: int) -> TrainLoader:
    return train_loader(
        build(config.data, config.augment, seed=0).train,
        global_batch=batch,
        rank=0,
        world_size=1,
        seed=0,
        workers=workers,
        device=torch.device(config.trainer.device),
    )


def _as_stored(loader: TrainLoader) -> Batches:
    """Without the device's share: flip, color, normalization."""

    def batches(epoch: int) -> Iterable[object]:
        loader.train_sampler.set_epoch(epoch)
        return loader.stored

    return batches


def measure(
    config: Callable[[str], ExperimentConfig],
    folder: Path,
    batch: int,
    workers: Sequence[int],
    repeats: int,
    clock: Clock,
) -> list[Speed]:
    """Each of ``repeats`` rounds passes once with every contender at every number of workers, in an
    order drawn anew; a pass beforehand starts the workers and fills the file cache."""
    races = {
        (name, count): batches
        for count in workers
        for name, batches in contenders(config, folder, batch, count).items()
    }
    samples: dict[tuple[str, int], list[float]] = {race: [] for race in races}
    order = random.Random(0)
    for epoch in range(repeats + 1):
        for race in order.sample(list(races), len(races)):
            with _bound_to(max(race[1], 1)):
                speed = _images_per_s(races[race], epoch, batch, clock)
            if epoch:
                samples[race].append(speed)
    return [
        Speed(name, count, statistics.median(speeds), min(speeds), max(speeds))
        for (name, count), speeds in samples.items()
    ]


def _images_per_s(batches: Batches, epoch: int, batch: int, clock: Clock) -> float:
    start = clock()
    count = sum(1 for _ in batches(epoch))
    return count * batch / (clock() - start)


@contextmanager
def _bound_to(cores: int) -> Iterator[None]:
    """Within, this process and the workers that it starts have as many cores, always the same, and
    this process no more threads: two that wait for one another on one core cost more than they do.
    """
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    torch.set_num_threads(min(threads, cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def ratios(speeds: Sequence[Speed]) -> dict[str, float]:
    """On one core, in the process itself: ours, which end as the reference does, in normalized
    floats, over the others; and without that share, which a GPU takes where there is one."""
    one = {speed.contender: speed.images_per_s for speed in speeds if speed.workers == 0}
    over = [
        ("exact", "reference", REFERENCE),
        ("fast", "reference", REFERENCE),
        ("fast", "decode", PILLOW),
        ("fast", "limit", LIMIT),
    ]
    return {
        f"{ours}/{short}{note}": one[f"{ours}{share}"] / one[other]
        for share, note in ((NORMALIZED, ""), ("", ", as stored"))
        for ours, short, other in over
    }


def scaling(speeds: Sequence[Speed]) -> dict[str, dict[str, float]]:
    """By contender: over one worker's speed, that of each number of workers."""
    one = {speed.contender: speed.images_per_s for speed in speeds if speed.workers == 1}
    return {
        name: {
            str(speed.workers): speed.images_per_s / alone
            for speed in speeds
            if speed.contender == name and speed.workers > 1
        }
        for name, alone in one.items()
    }


def _table(speeds: Sequence[Speed], found: dict[str, float]) -> str:
    counts = sorted({speed.workers for speed in speeds})
    by_race = {(speed.contender, speed.workers): speed.images_per_s for speed in speeds}
    rows = [["images/s", *map(_how_many, counts)]]
    rows += [
        [name, *(f"{by_race[name, n]:.0f}" for n in counts)]
        for name in dict.fromkeys(speed.contender for speed in speeds)
    ]
    lines = [["on one core", ""], *([name, f"{value:.2f}"] for name, value in found.items())]
    return f"{aligned(rows)}\n\n{aligned(lines)}"


def _how_many(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}" if workers else "in process"


def _panels(speeds: Sequence[Speed]) -> dict[str, dict[str, float]]:
    """Time over the reference's with as many workers."""
    base = {speed.workers: speed.images_per_s for speed in speeds if speed.contender == REFERENCE}
    return {
        _how_many(count): {
            speed.contender: reference / speed.images_per_s
            for speed in speeds
            if speed.workers == count and speed.contender != REFERENCE
        }
        for count, reference in base.items()
    }


def _add_arguments(parser: ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="of the loader, as train.py takes it: augment=he2016",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="class folders")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=list(range(cores + 1)),
        help="loader processes, a core for each; 0, which is always measured, is this one's own; "
        "default all from 0 to the cores",
    )
    parser.add_argument("--batch", type=int, default=20, help="images per batch; default 20")
    add_rounds(
        parser, 9, "this process's own time, --workers 0 alone; for a machine that others share"
    )


def _measure(args: Namespace, device: torch.device) -> Report:
    cores = len(os.sched_getaffinity(0))
    wrong = [count for count in args.workers if not 0 <= count <= cores]
    if wrong:
        raise UserError(f"--workers {wrong[0]}: expected 0 to {cores}, a core for each")
    if args.clock == "cpu" and args.workers != [0]:
        raise UserError("--clock cpu sees no time of the workers: expected --workers 0")
    if not args.threads:
        torch.set_num_threads(1)  # as each worker has

    def config(decode: str) -> ExperimentConfig:
        images = [f"data.train={args.images}", f"data.val={args.images}", f"data.decode={decode}"]
        chosen = ["data=imagefolder", *images, f"trainer.device={device.type}", *args.overrides]
        return composed(args.configs, chosen)

    workers = sorted({0, *args.workers})
    speeds = measure(config, args.images, args.batch, workers, args.repeats, CLOCKS[args.clock])
    found = ratios(speeds)
    data = build(config("exact").data, config("exact").augment, seed=0)
    facts = {
        "images": len(data.train),
        "fingerprint": data.fingerprint["train"],
        "overrides": args.overrides,
        "batch": args.batch,
        "repeats": args.repeats,
        "clock": args.clock,
        "speeds": [speed.__dict__ for speed in speeds],
        "ratios": found,
        "scaling": scaling(speeds),
    }
    return Report(facts, _table(speeds, found), _panels(speeds), REFERENCE)


COMMAND = Command(
    "images/s of the loader, beside torchvision's reference pipeline and decoding alone",
    _add_arguments,
    _measure,
)
