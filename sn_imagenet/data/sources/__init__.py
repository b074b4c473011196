"""Image sources: ``data.source`` names a module of this folder.

Such a module defines ``PATH_OPTIONS``, which of root, train and val (data.root, ...) it reads, and
``open_source(data) -> (train, val)``, a pair of :class:`Source`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_INDEXED_SOURCES = ("imagefolder", "imagenet")  # have a stored index, and open without torch


class Sample(NamedTuple):
    """One sample. ``stored``: the bytes of its file, not yet decoded, or its pixels, uint8 or
    float32 in [0, 1], [3, H, W]. ``size``: (height, width)."""

    stored: bytes | Tensor
    size: tuple[int, int]
    label: int


class Source(Protocol):
    """A data set before augmentation, sorted, so that an index is a permanent sample id.
    ``labels``: int64 [N]."""

    classes: tuple[str, ...]
    labels: np.ndarray

    def fingerprint(self) -> dict[str, Any]:
        """{"samples": count, "sha256": hex}."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Sample:
        """
        Raises:
            DataError: the file cannot be read.
            UndecodableError: it is not an image.
        """

    def location(self, index: int) -> str:
        """Where the sample is stored, for messages."""


def open_source(data: DataConfig) -> tuple[Source, Source]:
    """Open the training and the validation data that ``data`` describes.

    Raises:
        ConfigError: the source is unknown.
        DataError: the data are missing or unusable.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if data.source not in names:
        raise ConfigError(f"data.source={data.source}: expected one of {', '.join(names)}")
    module = importlib.import_module(f"{__name__}.{data.source}")
    for option in ("root", "train", "val"):
        value = getattr(data, option)
        if value and option not in module.PATH_OPTIONS:
            uses = " ".join(f"data.{name}=DIR" for name in module.PATH_OPTIONS)
            raise DataError(
                f"data.{option}={value} would not be read: data={data.source} uses "
                f"{uses or 'no folder at all'}. For your own folders use data=imagefolder "
                "data.train=DIR data.val=DIR."
            )
    try:
        sources: tuple[Source, Source] = module.open_source(data)
    except OSError as error:  # no permission, a dangling link, a lost network file system
        raise DataError(f"data={data.source} cannot be read: {error}") from error
    return sources


def check_files(data: DataConfig) -> None:
    """Check a data set of image files quickly and without torch.

    Raises:
        DataError: as :func:`open_source`.
    """
    if data.source in _INDEXED_SOURCES:
        open_source(data)
