"""Any folder of images, at any depth and without classes, upright by their EXIF orientation."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.scanning import IMG_EXTENSIONS
from sn_imagenet.data.seeding import derive_seed
from sn_imagenet.data.sources import Sample
from sn_imagenet.runs import write_atomically
from sn_imagenet.runs.reading import open_to_read

PATH_OPTIONS = ("train", "val")
MOST_HELD_OUT = 100


def open_source(data: DataConfig) -> tuple[ImageFiles, ImageFiles]:
    """``data.train`` and ``data.val``; without the latter, a tenth of the former is held out, at
    most 100 images, the same for every seed.

    Raises:
        DataError: a folder is not given, does not exist or has too few images.
    """
    train = list_images(data.train, "data.train")
    if data.val:
        return train, list_images(data.val, "data.val")
    count = min(MOST_HELD_OUT, max(1, len(train) // 10))
    if len(train) == count:
        raise DataError(f"data.train={data.train} has one image: give more, or data.val=DIR")
    ranked = sorted(range(len(train)), key=lambda index: derive_seed("held out", index))
    parts = sorted(ranked[count:]), sorted(ranked[:count])
    kept, held_out = (ImageFiles(train.folder, [train.names[i] for i in part]) for part in parts)
    return kept, held_out


def list_images(folder: str | Path | None, option: str) -> ImageFiles:
    """The images in ``folder`` and below, sorted by path; hidden files and folders are skipped.

    Raises:
        DataError: ``folder`` is None or no folder, or has no image in it.
    """
    root = Path(folder or "").expanduser()
    if not folder or not root.is_dir():
        raise DataError(f"{option}={folder}: there is no such folder; expected a folder of images")
    files = (f.relative_to(root) for f in root.rglob("*") if f.suffix.lower() in IMG_EXTENSIONS)
    names = sorted(str(f) for f in files if not any(part.startswith(".") for part in f.parts))
    if not names:
        expected = ", ".join(IMG_EXTENSIONS)
        raise DataError(f"{option}={folder}: no images in it or below; expected {expected}")
    return ImageFiles(root, names)


class ImageFiles:
    """The images ``names`` in ``folder``, all of one class; opening one raises as
    :func:`read_image`."""

    classes = ("image",)

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names
        self.labels = np.zeros(len(names), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Sample:
        pixels = read_image(self.folder / self.names[index])
        height, width, _ = pixels.shape
        return Sample(torch.from_numpy(pixels).permute(2, 0, 1), (height, width), 0)

    def location(self, index: int) -> str:
        return str(self.folder / self.names[index])

    def fingerprint(self) -> dict[str, Any]:
        """Over (name, size in bytes) of each file."""
        digest = hashlib.sha256()
        for name in self.names:
            size = (self.folder / name).stat().st_size
            digest.update(b"%s\0%d\n" % (os.fsencode(name), size))
        return {"samples": len(self), "sha256": digest.hexdigest()}


def read_image(path: Path) -> np.ndarray:
    """The image of a file as viewers show it: RGB, uint8 [H, W, 3].

    Raises:
        DataError: it cannot be read or decoded.
    """
    try:
        with open_to_read(path) as file, Image.open(file) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # Pillow raises errors of many types for broken files
        reason = "unknown format" if "cannot identify" in str(error) else str(error)
        raise DataError(f"{path} cannot be read as an image ({reason}): replace it") from error


def png_targets(names: Sequence[str]) -> dict[str, Path]:
    """The relative path of the PNG that is made of each image, by the image's name.

    Raises:
        DataError: two would have the same.
    """
    targets = {name: Path(name).with_suffix(".png") for name in names}
    if len(set(targets.values())) < len(targets):
        raise DataError("two images differ only in their suffix, not in their PNG; rename one")
    return targets


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """Write an image, uint8 [H, W, 3], below the folder ``--out``. Returns its path."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return write_atomically(path, buffer.getvalue(), "--out")
