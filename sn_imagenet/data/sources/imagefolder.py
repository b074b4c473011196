"""Images of one's own: two folders of class folders."""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.folders import FolderSource, require_same_classes

READS = ("train", "val")


def open_source(data: DataConfig) -> tuple[FolderSource, FolderSource]:
    """``data.train`` and ``data.val``.

    Raises:
        DataError: a folder is not given or not usable, or the classes of the two differ.
    """
    sources = (_folder("data.train", data.train), _folder("data.val", data.val))
    require_same_classes(*sources)
    return sources


def _folder(option: str, value: str | None) -> FolderSource:
    if not value:
        raise DataError(
            f"data=imagefolder needs {option}: give data.train=DIR data.val=DIR, each with one "
            "folder of images per class."
        )
    return FolderSource(Path(value).expanduser(), option)
