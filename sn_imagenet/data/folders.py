"""Data sets on disk: one folder per class, one file per image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from sn_imagenet.data.errors import DataError

SIZES_IN_FINGERPRINT = 1000


class FolderSource:
    """The image files below ``folder``, sorted by class folder and path. ``source[i]`` is (PIL
    image in RGB, label); the label is the place of the class folder's name in sorted order.

    Raises:
        DataError: no such folder, no class folders in it, or a class folder without an image.
    """

    def __init__(self, folder: Path, option: str) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder} ({option}): there is no such folder.")
        self.folder = folder
        self.classes = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
        if not self.classes:
            raise DataError(
                f"{folder} ({option}) has no class folders in it. Expected one folder per class "
                "with that class's images."
            )
        samples = make_dataset(
            folder,
            {name: label for label, name in enumerate(self.classes)},
            extensions=IMG_EXTENSIONS,
            allow_empty=True,
        )
        # Arrays, not lists of 1.28 million objects: a forked worker that counts references to
        # these would copy them page by page.
        self.labels = np.array([label for _, label in samples], dtype=np.int64)
        prefix = len(os.path.join(folder, ""))
        self.paths = np.array([os.fsencode(path[prefix:]) for path, _ in samples])
        counts = np.bincount(self.labels, minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts, strict=True) if count == 0]
        if empty:
            raise DataError(
                f"{folder} ({option}) has no image files in class folder {some(empty)}. Remove "
                f"the empty folder or add images ({', '.join(IMG_EXTENSIONS)})."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return decode(self.folder / os.fsdecode(self.paths[index])), int(self.labels[index])

    def fingerprint(self) -> dict[str, Any]:
        """Of the sorted relative paths (which begin with the class), and of the sizes in bytes of
        at most 1,000 evenly spaced files: asking a network file system for the sizes of 1.28
        million would take longer than some runs."""
        digest = hashlib.sha256(b"\n".join(self.paths.tolist()))
        chosen = np.linspace(0, len(self) - 1, min(len(self), SIZES_IN_FINGERPRINT)).astype(int)
        sizes = [(self.folder / os.fsdecode(self.paths[i])).stat().st_size for i in chosen]
        digest.update(repr(sizes).encode())
        return {"samples": len(self), "sha256": digest.hexdigest()}


def decode(path: Path) -> Image.Image:
    """The image file as RGB; greyscale, CMYK and palette images are converted.

    Raises:
        DataError: the file cannot be read as an image, or only in part.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")  # reads every pixel: a truncated file fails here
    except Exception as error:  # Pillow raises errors of many types for broken files
        raise DataError(
            f"{path} cannot be read as an image ({error}). Put an intact copy in its place or "
            "remove the file; nothing is substituted for it."
        ) from error


def require_same_classes(train: FolderSource, val: FolderSource) -> None:
    """Whether a label means the same in both.

    Raises:
        DataError: it does not.
    """
    only_train = sorted(set(train.classes) - set(val.classes))
    only_val = sorted(set(val.classes) - set(train.classes))
    if only_train or only_val:
        only = [
            f"only in {source.folder}: {some(names)}"
            for source, names in ((train, only_train), (val, only_val))
            if names
        ]
        raise DataError(f"The classes of train and val differ; {'; '.join(only)}.")


def some(names: Iterable[str], most: int = 5) -> str:
    """'a, b, c' or 'a, b, c, d, e and 7 more'."""
    listed = list(names)
    text = ", ".join(listed[:most])
    return text if len(listed) <= most else f"{text} and {len(listed) - most} more"
