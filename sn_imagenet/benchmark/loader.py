"""Images/s of the loader against torchvision's reference pipeline and against decoding alone."""

from __future__ import annotations

import itertools
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sn_imagenet.benchmark.command import Report, align_columns, compose_config
from sn_imagenet.benchmark.timing import median_seconds
from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.datasets import build
from sn_imagenet.data.decode import decode
from sn_imagenet.data.loaders import BatchLoader, train_loader
from sn_imagenet.errors import UserError

TORCHVISION = "torchvision's reference"
PILLOW = "Pillow's decoding alone"
LIMIT = "simplejpeg's decoding alone"
NORMALIZED = ", normalized"
OVERRIDES = "are of the loader, as for train.py: augment=he2016"

Batches = Callable[[int], Iterable[object]]
"""``batches(epoch)`` yields the batches of one pass over the images."""


def loader_contenders(
    config: Callable[[str], ExperimentConfig], folder: Path, batch: int, workers: int
) -> dict[str, Batches]:
    """Contenders by name; each passes over all images but the last partial batch, in random order.

    Args:
        config: returns the configuration for a value of ``data.decode``.
        folder: a folder of class folders.
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

    def plain_loader(dataset: Dataset[Any], **options: Any) -> Batches:
        options |= {"num_workers": workers, "persistent_workers": workers > 0}
        loader = DataLoader(dataset, batch, shuffle=True, drop_last=True, **options)
        return lambda epoch: loader

    contenders = {
        TORCHVISION: plain_loader(ImageFolder(folder, reference)),
        PILLOW: plain_loader(ImageFolder(folder), collate_fn=len),
        LIMIT: plain_loader(_DecodedImages(folder), collate_fn=len),
    }
    for name in ("exact", "fast"):
        chosen = config(name)
        images = build(chosen.data, chosen.augment, seed=0).train
        device = torch.device(chosen.trainer.device)
        sampling: dict[str, Any] = {"global_batch": batch, "rank": 0, "world_size": 1, "seed": 0}
        loader = train_loader(images, workers=workers, device=device, **sampling)
        contenders[name] = partial(_stored_batches, loader)
        contenders[f"{name}{NORMALIZED}"] = loader.epoch
    return contenders


class _DecodedImages(ImageFolder):
    """Images that simplejpeg decodes, and nothing else."""

    def __getitem__(self, index: int) -> object:
        return decode(Path(self.samples[index][0]).read_bytes())


def _stored_batches(loader: BatchLoader, epoch: int) -> Iterable[object]:
    """The loader's batches before the transforms on the device: color shift, normalization."""
    loader.sampler.set_epoch(epoch)
    return loader.data_loader


@contextmanager
def _pinned_to_cores(cores: int) -> Iterator[None]:
    """Pin this process and the workers that it starts to the first ``cores`` cores, with at most as
    many threads: two threads that share one core cost more than they gain.
    """
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    torch.set_num_threads(min(threads, cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def ratios(images_per_s: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Speed of our loader relative to the others, on one core without workers: up to normalized
    floats, as the reference, and "as stored", without the transforms that a GPU would do."""
    pairs = [
        ("exact", "reference", TORCHVISION),
        ("fast", "reference", TORCHVISION),
        ("fast", "decode", PILLOW),
        ("fast", "limit", LIMIT),
    ]
    return {
        f"{ours}/{short}{note}": images_per_s[f"{ours}{share}", 0] / images_per_s[other, 0]
        for share, note in ((NORMALIZED, ""), ("", ", as stored"))
        for ours, short, other in pairs
    }


def add_arguments(parser: ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="class folders")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=list(range(cores + 1)),
        help="numbers of loader processes, on a core each; 0 loads in this process and is always "
        "measured; default 0 to the number of cores",
    )
    parser.add_argument("--batch", type=int, default=20, help="images per batch; default 20")


def measure(args: Namespace, device: torch.device) -> Report:
    cores = len(os.sched_getaffinity(0))
    wrong = [count for count in args.workers if not 0 <= count <= cores]
    if wrong:
        raise UserError(f"--workers {wrong[0]}: expected 0 to {cores}, the number of cores")
    if not args.threads:
        torch.set_num_threads(1)  # as in each worker

    def config(decode: str) -> ExperimentConfig:
        images = [f"data.train={args.images}", f"data.val={args.images}", f"data.decode={decode}"]
        chosen = ["data=imagefolder", *images, f"trainer.device={device.type}", *args.overrides]
        return compose_config(chosen)

    def passes(batches: Batches, cores: int) -> Callable[[], int]:
        epochs = itertools.count()
        return _pinned_to_cores(cores)(lambda: sum(1 for _ in batches(next(epochs))))

    workers = sorted({0, *args.workers})
    calls = {
        (name, count): passes(batches, max(count, 1))
        for count in workers
        for name, batches in loader_contenders(config, args.images, args.batch, count).items()
    }
    # The untimed pass starts the workers and fills the file cache.
    timed = median_seconds(calls, args.repeats, torch.device("cpu"), warm_up=1)
    exact = config("exact")
    data = build(exact.data, exact.augment, seed=0)
    passed = len(data.train) // args.batch * args.batch
    speeds = {key: passed / seconds for key, seconds in timed.items()}
    facts = {
        "images": len(data.train),
        "fingerprint": data.fingerprint["train"],
        "batch": args.batch,
        "speeds": [
            {"contender": name, "workers": count, "images_per_s": speed}
            for (name, count), speed in speeds.items()
        ],
        "ratios": ratios(speeds),
    }
    rows = [["images/s by workers", *map(str, workers)]]
    for name in dict.fromkeys(name for name, _ in speeds):
        rows.append([name, *(f"{speeds[name, count]:.0f}" for count in workers)])
    on_one = [["on one core", ""]]
    on_one += [[name, f"{ratio:.2f}"] for name, ratio in ratios(speeds).items()]
    return facts, f"{align_columns(rows)}\n\n{align_columns(on_one)}"
