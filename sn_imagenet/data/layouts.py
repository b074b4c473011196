"""Find the training and validation splits of a data set in a folder, and how to scan each."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import DEVKIT, SOLUTION, WnidLookup, find_val_labels
from sn_imagenet.data.index import Index, open_index
from sn_imagenet.data.parquet import find_shards, scan_shards
from sn_imagenet.data.scanning import (
    scan_class_folders,
    scan_flat_folder,
    scan_tar_of_images,
    scan_tar_of_tars,
    shorten_list,
)

KAGGLE = Path("ILSVRC") / "Data" / "CLS-LOC"
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"


class Split(NamedTuple):
    """``scan()`` lists the samples at ``origin``, a folder or an archive."""

    origin: Path
    scan: Callable[[], Index]

    def open(self) -> Index:
        """Load the index of the split, or build it if there is none."""
        return open_index(self.origin, self.scan)


def class_folder_split(folder: Path, option: str) -> Split:
    """A folder with one folder per class; ``option`` is the config key that gave it."""
    return Split(folder, lambda: scan_class_folders(folder, option))


def split_at(path: Path, option: str) -> Split:
    """The split whose origin is ``path``: an archive or folder of ImageNet in any of its layouts,
    or else a folder of class folders. ``option`` is the config key that gave it.

    Raises:
        DataError: there is neither.
    """
    if path.is_dir() and not _is_flat(path):
        return class_folder_split(path, option)
    for root in list(path.parents)[:4]:  # Kaggle's val/ is four folders below
        for split in (find_imagenet_train(root), find_imagenet_val(root)):
            if split is not None and split.origin == path:
                return split
    if path.exists() and not path.is_dir():
        raise DataError(
            f"{path} ({option}) is not an archive of ImageNet: expected a folder of class folders, "
            f"{TRAIN_TAR} or {VAL_TAR}."
        )
    return class_folder_split(path, option)


def find_imagenet_train(root: Path) -> Split | None:
    """The first that ``root`` holds of train/, Train/, Kaggle's folder, ILSVRC2012_img_train.tar
    and Hugging Face's parquet files."""
    for folder in (root / "train", root / "Train", root / KAGGLE / "train"):
        if folder.is_dir():
            return class_folder_split(folder, "data.root")
    archive = root / TRAIN_TAR
    if archive.is_file():
        return Split(archive, lambda: scan_tar_of_tars(archive))
    return _parquet_split(root, "train")


def find_imagenet_val(root: Path) -> Split | None:
    """The first that ``root`` holds of val/, Val/ (class folders or flat), Kaggle's folder,
    ILSVRC2012_img_val.tar and Hugging Face's parquet files."""
    for folder in (root / "val", root / "Val", root / KAGGLE / "val"):
        if folder.is_dir():
            if _is_flat(folder):
                return Split(folder, partial(_scan_with_labels, root, folder, scan_flat_folder))
            return class_folder_split(folder, "data.root")
    archive = root / VAL_TAR
    if archive.is_file():
        return Split(archive, partial(_scan_with_labels, root, archive, scan_tar_of_images))
    return _parquet_split(root, "validation")


def _is_flat(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.startswith("ILSVRC2012_val_") for entry in entries)


def class_differences(one: Index, other: Index) -> str:
    """The classes that only one of the two has, as a clause; empty if there are none."""
    return "; ".join(
        f"only in {index.origin}: {shorten_list(names)}"
        for index, another in ((one, other), (other, one))
        if (names := sorted(set(index.classes) - set(another.classes)))
    )


def require_same_classes(train: Index, val: Index) -> None:
    """
    Raises:
        DataError: the two splits have different classes.
    """
    if differences := class_differences(train, val):
        raise DataError(f"The classes of train and val differ; {differences}.")


def _scan_with_labels(
    root: Path, val: Path, scan: Callable[[Path, WnidLookup, Path], Index]
) -> Index:
    """Images whose labels are in another file in ``root``."""
    folders = [root, root / KAGGLE, root / KAGGLE.parent.parent, *list(val.parents)[:4]]
    labels = find_val_labels(folders)
    if labels is None:
        raise DataError(
            f"{val} has no labels for its images. They are in ImageNet's devkit: put "
            f"{DEVKIT}.tar.gz (or Kaggle's {SOLUTION}) into {root}."
        )
    return scan(val, *labels)


def _parquet_split(root: Path, split: str) -> Split | None:
    shards = find_shards(root, split)
    return shards and Split(shards[0], lambda: scan_shards(*shards))
