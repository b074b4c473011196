"""Where images come from: ``data.source`` names a module of this folder.

Such a module has ``READS``, the names of those of data.root, data.train and data.val that it reads,
and ``open_source(data) -> (train, val)``, two of :class:`Source`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_FILES = ("imagefolder", "imagenet")  # opened without torch, by an index that is kept


class Sample(NamedTuple):
    """One sample: its ``size`` (height, width) and label are known before its pixels are.
    ``pixels()``: uint8 [H, W, 3], or float32 [3, H, W] in [0, 1]; ``pixels(rows)`` may leave out
    what is below so many rows of it."""

    size: tuple[int, int]
    label: int
    pixels: Callable[..., np.ndarray | Tensor]


class Source(Protocol):
    """A data set as it is stored: sorted, so that an index is a sample's id for good. ``labels``:
    int64 [N]."""

    classes: tuple[str, ...]
    labels: np.ndarray

    def fingerprint(self) -> dict[str, Any]:
        """{"samples": count, "sha256": hex}."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Sample: ...


def open_source(data: DataConfig) -> tuple[Source, Source]:
    """The training and the validation data that ``data`` describes.

    Raises:
        ConfigError: there is no such source.
        DataError: the data are not there or not usable as they are.
    """
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if data.source not in known:
        raise ConfigError(f"data.source={data.source}: expected one of {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{data.source}")
    _require_only_what_is_read(data, module.READS)
    try:
        sources: tuple[Source, Source] = module.open_source(data)
    except OSError as error:  # no permission, a dangling link, a lost network file system
        raise DataError(f"data={data.source} cannot be read: {error}") from error
    return sources


def check_files(data: DataConfig) -> None:
    """What can be found wrong with files of images in little time and without torch.

    Raises:
        DataError: as :func:`open_source`.
    """
    if data.source in _FILES:
        open_source(data)


def _require_only_what_is_read(data: DataConfig, read: tuple[str, ...]) -> None:
    for option in ("root", "train", "val"):
        value = getattr(data, option)
        if value and option not in read:
            uses = " ".join(f"data.{name}=DIR" for name in read) or "no folder at all"
            raise DataError(
                f"data.{option}={value} would not be read: data={data.source} uses {uses}. For "
                "your own folders choose data=imagefolder data.train=DIR data.val=DIR."
            )
