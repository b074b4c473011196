"""Find the training and validation splits of a data set in a folder, and how to scan each."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import Index, Split
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.parquet import find_shards, scan_shards
from sn_imagenet.data.scanning import (
    scan_class_folders,
    scan_flat_folder,
    scan_tar_of_images,
    scan_tar_of_tars,
    shorten_list,
)

_KAGGLE = "ILSVRC/Data/CLS-LOC"
_ARCHIVES = {
    "ILSVRC2012_img_train.tar": scan_tar_of_tars,
    "ILSVRC2012_img_val.tar": scan_tar_of_images,
}
_TRAIN_TAR, _VAL_TAR = _ARCHIVES
# Where each split of ImageNet may be; the first that exists counts. The last of each, and the same
# without data/, stand for Hugging Face's parquet files.
_PLACES = {
    "training": ("train", "Train", f"{_KAGGLE}/train", _TRAIN_TAR, "data/train"),
    "validation": ("val", "Val", f"{_KAGGLE}/val", _VAL_TAR, "validation", "data/validation"),
}


def find_imagenet(root: Path) -> dict[str, Split]:
    """The splits of ImageNet in ``root``, in any layout, by name: training and validation, or what
    there is of them."""
    found = {}
    for name, places in _PLACES.items():
        for path in (root / place for place in places):
            if path.exists() or find_shards(path):
                found[name] = split_at(path, "data.root")
                break
    return found


def split_at(path: Path, option: str) -> Split:
    """The split whose origin is ``path``: an archive or folder of ImageNet, the path that stands
    for parquet files, or else a folder of class folders. ``option`` is the config key that gave it.

    Raises:
        DataError: it is another file.
    """
    scan: Callable[..., Index]
    if path.is_dir():
        scan = scan_flat_folder if _is_flat(path) else partial(scan_class_folders, option=option)
    elif path.exists():
        if path.name not in _ARCHIVES:
            raise DataError(
                f"{path} ({option}) is not an archive of ImageNet: expected a folder of class "
                f"folders, {_TRAIN_TAR} or {_VAL_TAR}."
            )
        scan = _ARCHIVES[path.name]
    elif shards := find_shards(path):
        scan = partial(scan_shards, files=shards)
    else:
        raise DataError(f"{path} ({option}): there is no such folder.")
    return Split(path, partial(scan, path))


def _is_flat(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.startswith("ILSVRC2012_val_") for entry in entries)


def open_splits(train: Split, val: Split) -> tuple[IndexedSource, IndexedSource]:
    """Open the two splits of a data set.

    Raises:
        DataError: one cannot be used, or the two have different classes.
    """
    sources = IndexedSource(train.open()), IndexedSource(val.open())
    differences = [
        f"only in {one.index.origin}: {shorten_list(only)}"
        for one, other in (sources, reversed(sources))
        if (only := sorted(set(one.classes) - set(other.classes)))
    ]
    if differences:
        raise DataError(f"The classes of train and val differ; {'; '.join(differences)}.")
    return sources
