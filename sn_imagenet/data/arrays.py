"""Data sets that fit in memory: scikit-learn's digits and CIFAR-10."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CIFAR10

from sn_imagenet.data.errors import DataError

DIGITS_VAL = 400


class ArraySource:
    """Images in one array. ``source[i]`` is (uint8 array [H, W, 3] as a PIL image, or the float32
    tensor [3, H, W] in [0, 1]; label)."""

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray,
        classes: tuple[str, ...],
        hashed: dict[str, Any],
    ) -> None:
        self.images = images
        self.labels = labels
        self.classes = classes
        self.hashed = hashed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int]:
        image = self.images[index]
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        return image, int(self.labels[index])

    def fingerprint(self) -> dict[str, Any]:
        """Of the stored pixels and the labels."""
        return self.hashed


def digits(image_size: int) -> tuple[ArraySource, ArraySource]:
    """The 1,797 handwritten digits that scikit-learn bundles (8x8, values 0 to 16), as three equal
    channels in [0, 1], enlarged bilinearly to ``image_size``: 1,397 for training, 400 for
    validation, stratified, the same split for every seed of a run."""
    # Here, because importing it takes seconds, which no other data should pay for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    numbers = np.arange(len(bunch.target))
    train, val = train_test_split(
        numbers, test_size=DIGITS_VAL, stratify=bunch.target, random_state=0
    )
    classes = tuple(str(name) for name in bunch.target_names)

    def part(chosen: np.ndarray) -> ArraySource:
        chosen = np.sort(chosen)
        raw = bunch.images[chosen].astype(np.uint8)
        labels = bunch.target[chosen].astype(np.int64)
        small = torch.from_numpy(raw)[:, None].float() / 16
        large = F.interpolate(small, size=(image_size, image_size), mode="bilinear")
        # Of the pixels as they were scanned: the enlarged ones may differ by rounding elsewhere.
        return ArraySource(large.repeat(1, 3, 1, 1), labels, classes, _hash(raw, labels))

    return part(train), part(val)


def cifar10(root: str | None) -> tuple[ArraySource, ArraySource]:
    """CIFAR-10 (uint8 [N, 32, 32, 3]) from ``root``, downloaded into it where it is absent.

    Raises:
        DataError: it is neither there nor can be downloaded.
    """
    if not root:
        raise DataError("data=cifar10 needs a folder: data.root=DIR, or set CIFAR10_ROOT.")
    folder = Path(root).expanduser()
    try:
        sets = [_open_or_download(folder, train) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-10 is not (or not intact) in data.root={folder} and cannot be downloaded "
            f"({error}). Fetch {CIFAR10.url} on another machine and unpack it there, or point "
            "data.root or CIFAR10_ROOT to a folder that holds cifar-10-batches-py."
        ) from error

    def part(dataset: CIFAR10) -> ArraySource:
        labels = np.array(dataset.targets, dtype=np.int64)
        hashed = _hash(dataset.data, labels)
        return ArraySource(dataset.data, labels, tuple(dataset.classes), hashed)

    train, val = map(part, sets)
    return train, val


def _open_or_download(folder: Path, train: bool) -> CIFAR10:
    try:
        return CIFAR10(folder, train=train)
    except RuntimeError:  # absent or not intact
        folder.mkdir(parents=True, exist_ok=True)
        # All ranks of a node start at once: one downloads, the others then find it there.
        with open(folder / ".download.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return CIFAR10(folder, train=train, download=True)


def _hash(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    digest.update(labels.tobytes())
    return {"samples": len(labels), "sha256": digest.hexdigest()}
