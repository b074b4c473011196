"""Where the two parts of a data set lie below a folder, and how each is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import DEVKIT, SOLUTION, check_known, find_truth
from sn_imagenet.data.index import Index, Listing, open_index
from sn_imagenet.data.parquet import list_rows, shards
from sn_imagenet.data.scanning import (
    Truth,
    class_folders,
    flat_folder,
    some,
    tar_of_images,
    tar_of_tars,
)

IMAGENET_CLASSES = 1000
KAGGLE = Path("ILSVRC") / "Data" / "CLS-LOC"
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"


class Part(NamedTuple):
    """``scan()`` lists what lies at ``origin``, a folder or an archive."""

    origin: Path
    scan: Callable[[], Listing]

    def open(self) -> Index:
        """Its index, made where there is none."""
        return open_index(self.origin, self.scan)


def folders(folder: Path, option: str) -> Part:
    """One folder per class, given as ``option``."""
    return Part(folder, lambda: class_folders(folder, option))


def imagenet_train(root: Path) -> Part | None:
    """The first of train/, Train/, Kaggle's, ILSVRC2012_img_train.tar and Hugging Face's parquet
    files that lies in ``root``."""
    for folder in (root / "train", root / "Train", root / KAGGLE / "train"):
        if folder.is_dir():
            return folders(folder, "data.root")
    archive = root / TRAIN_TAR
    if archive.is_file():
        return Part(archive, lambda: tar_of_tars(archive))
    return _parquet(root, "train")


def imagenet_val(root: Path) -> Part | None:
    """The first of val/, Val/ (class folders, or flat), Kaggle's, ILSVRC2012_img_val.tar and
    Hugging Face's parquet files that lies in ``root``."""
    for folder in (root / "val", root / "Val", root / KAGGLE / "val"):
        if folder.is_dir():
            if _is_flat(folder):
                return _told(root, folder, flat_folder)
            return Part(folder, partial(_checked_folders, folder))
    archive = root / VAL_TAR
    if archive.is_file():
        return _told(root, archive, tar_of_images)
    return _parquet(root, "validation")


def require_same_classes(train: Index, val: Index) -> None:
    """
    Raises:
        DataError: the classes of the two differ.
    """
    one, other = train.listing, val.listing
    only = [
        f"only in {listing.origin}: {some(names)}"
        for listing, names in (
            (one, sorted(set(one.classes) - set(other.classes))),
            (other, sorted(set(other.classes) - set(one.classes))),
        )
        if names
    ]
    if only:
        raise DataError(f"The classes of train and val differ; {'; '.join(only)}.")


def _is_flat(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.startswith("ILSVRC2012_val_") for entry in entries)


def _told(root: Path, val: Path, scan: Callable[[Path, Truth, Path], Listing]) -> Part:
    """Images whose classes another file in ``root`` tells."""

    def scan_with_truth() -> Listing:
        found = find_truth([root, root / KAGGLE, root / KAGGLE.parent.parent])
        if found is None:
            raise DataError(
                f"{val} does not tell the classes of its images: they are in ImageNet's devkit. "
                f"Put {DEVKIT}.tar.gz (or Kaggle's {SOLUTION}) into {root}."
            )
        return _checked(scan(val, *found))

    return Part(val, scan_with_truth)


def _parquet(root: Path, split: str) -> Part | None:
    found = shards(root, split)
    return found and Part(found[0], lambda: _checked(list_rows(*found)))


def _checked_folders(folder: Path) -> Listing:
    return _checked(class_folders(folder, "data.root"))


def _checked(listing: Listing) -> Listing:
    check_known(listing)
    return listing
