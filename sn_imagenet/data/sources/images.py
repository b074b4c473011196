"""Any folder of images, at any depth and without classes, upright by their EXIF orientation."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sn_imagenet.config import DataConfig
from sn_imagenet.data.decode import UndecodableError, decode, image_size
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.scanning import IMG_EXTENSIONS
from sn_imagenet.data.seeding import derive_seed
from sn_imagenet.data.sources import Sample

PATH_OPTIONS = ("train", "val")
MOST_HELD_OUT = 100
_ORIENTATION = 0x0112  # the tag's number in EXIF 2.3, 4.6.4


def open_source(data: DataConfig) -> tuple[ImageFiles, ImageFiles]:
    """``data.train`` and ``data.val``; without the latter, a tenth of the former is held out, at
    most 100 images, the same for every seed.

    Raises:
        DataError: a folder is not given, does not exist or has too few images.
    """
    if not data.train:
        raise DataError(
            f"data={data.name} needs data.train: give data.train=DIR, a folder of images"
        )
    train = list_images(Path(data.train).expanduser(), "data.train")
    if data.val:
        return train, list_images(Path(data.val).expanduser(), "data.val")
    count = min(MOST_HELD_OUT, max(1, len(train) // 10))
    if len(train) == count:
        raise DataError(f"{train.folder} (data.train) has one image: give more, or data.val=DIR")
    ranked = sorted(range(len(train)), key=lambda index: derive_seed("held out", index))
    return train.select(sorted(ranked[count:])), train.select(sorted(ranked[:count]))


def list_images(folder: Path, option: str) -> ImageFiles:
    """The images in ``folder`` and below, sorted by path; hidden files and folders are skipped.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} ({option}): there is no such folder")
    names: list[str] = []
    visited: set[str] = set()  # links may lead in a circle
    for here, below, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in visited:
            below.clear()
            continue
        visited.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        images = [n for n in files if n.lower().endswith(IMG_EXTENSIONS) and not n.startswith(".")]
        names += [os.path.relpath(os.path.join(here, name), folder) for name in images]
    if not names:
        known = ", ".join(IMG_EXTENSIONS)
        raise DataError(f"{folder} ({option}) has no images in it or below; expected {known}")
    return ImageFiles(folder, sorted(names))


class ImageFiles:
    """The images ``names`` in ``folder``, all of one class.

    Raises (when an image is opened or decoded):
        DataError: the file cannot be read or decoded.
    """

    classes = ("image",)

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names
        self.labels = np.zeros(len(names), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int]) -> ImageFiles:
        return ImageFiles(self.folder, [self.names[index] for index in indices])

    def open(self, index: int) -> Sample:
        pixels = read_image(self.folder / self.names[index])
        return Sample(pixels.shape[:2], 0, lambda rows=None: pixels)

    def fingerprint(self) -> dict[str, Any]:
        """Over (name, size in bytes) of each file."""
        digest = hashlib.sha256()
        for name in self.names:
            size = (self.folder / name).stat().st_size
            digest.update(b"%s\0%d\n" % (os.fsencode(name), size))
        return {"samples": len(self), "sha256": digest.hexdigest()}


def read_image(path: Path) -> np.ndarray:
    """The image of a file as a viewer shows it: RGB, uint8 [H, W, 3].

    Raises:
        DataError: it cannot be read or decoded.
    """
    try:
        data = path.read_bytes()
        image_size(data)  # refuses decompression bombs
        return upright(decode(data), data)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UndecodableError as error:
        raise DataError(f"{path} cannot be read as an image ({error}): replace it") from error


def upright(pixels: np.ndarray, data: bytes) -> np.ndarray:
    """``pixels`` [H, W, 3] of the file ``data``, turned as its EXIF orientation says."""
    orientation = 1
    with suppress(Exception), Image.open(io.BytesIO(data)) as image:  # EXIF may be damaged
        orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):  # stored with rows and columns exchanged
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
