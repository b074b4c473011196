"""Your own images: a training and a validation folder of class folders."""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.layouts import open_splits, split_at

PATH_OPTIONS = ("train", "val")


def open_source(data: DataConfig) -> tuple[IndexedSource, IndexedSource]:
    """Open ``data.train`` and ``data.val``.

    Raises:
        DataError: a folder is not given or unusable, or the classes of the two differ.
    """
    splits = []
    for option, value in (("data.train", data.train), ("data.val", data.val)):
        if not value:
            raise DataError(
                f"data=imagefolder needs {option}: give data.train=DIR data.val=DIR, each with one "
                "folder of images per class."
            )
        splits.append(split_at(Path(value).expanduser(), option))
    return open_splits(*splits)
