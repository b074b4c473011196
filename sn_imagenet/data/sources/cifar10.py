"""CIFAR-10: 50,000 training and 10,000 validation images of 32 x 32 pixels in ten classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10

from sn_imagenet.config import DataConfig
from sn_imagenet.data.arrays import ArraySource
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import exclusive_lock

PATH_OPTIONS = ("root",)


def open_source(data: DataConfig) -> tuple[ArraySource, ArraySource]:
    """CIFAR-10 (uint8 [N, 32, 32, 3]) from ``data.root``, downloaded there if absent.

    Raises:
        DataError: it is absent and cannot be downloaded.
    """
    if not data.root:
        raise DataError("data=cifar10 needs a folder: data.root=DIR, or set CIFAR10_ROOT.")
    folder = Path(data.root).expanduser()
    try:
        splits = [_open_or_download(folder, train) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-10 is missing or damaged in data.root={folder} and cannot be downloaded "
            f"({error}). Download {CIFAR10.url} on another machine and unpack it there, or set "
            "data.root or CIFAR10_ROOT to a folder that contains cifar-10-batches-py."
        ) from error

    def to_source(dataset: CIFAR10) -> ArraySource:
        labels = np.array(dataset.targets, dtype=np.int64)
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
        return ArraySource(images, labels, tuple(dataset.classes), stored=dataset.data)

    train, val = map(to_source, splits)
    return train, val


def _open_or_download(folder: Path, train: bool) -> CIFAR10:
    try:
        return CIFAR10(folder, train=train)
    except RuntimeError:  # absent or damaged
        # All ranks of a node start at once. One downloads, and the others find the result.
        with exclusive_lock(folder):
            return CIFAR10(folder, train=train, download=True)
