"""The data sets of a run, keyed by (epoch, index)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data import arrays, folders
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.seeding import derive_seed, seeded
from sn_imagenet.data.transforms import training_transform, validation_transform

# Which of data.root, data.train and data.val a source reads; another one given is a mistake.
_LOCATIONS = {
    "digits": (),
    "cifar10": ("root",),
    "imagefolder": ("train", "val"),
    "imagenet": ("root",),
}


class Source(Protocol):
    """A data set as it is stored: sorted, so that an index is a sample's id for good."""

    classes: tuple[str, ...]

    def fingerprint(self) -> dict[str, Any]:
        """{"samples": count, "sha256": hex}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int]: ...


class AugmentedDataset(Dataset[tuple[Tensor, int]]):
    """``dataset[epoch, index]`` is (float32 [3, S, S], label): sample ``index`` of ``source``,
    transformed by draws that are a function of (seed, epoch, index) only.

    Raises (on access):
        DataError: the sample's file cannot be decoded.
    """

    def __init__(self, source: Source, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self.source[index]
        with seeded(derive_seed("augment", self.seed, epoch, index)):
            return self.transform(image), label


@dataclass(frozen=True)
class DataSets:
    """``train`` is augmented; ``val`` (Resize, CenterCrop, Normalize) ignores the key's epoch.
    ``fingerprint`` can be written as JSON:
    {"train": {"samples": count, "sha256": hex}, "val": {...}}."""

    train: AugmentedDataset
    val: AugmentedDataset
    classes: tuple[str, ...]
    fingerprint: dict[str, Any]


def build(data: DataConfig, augment: AugmentConfig, seed: int) -> DataSets:
    """Open the data set that ``data`` describes; ``seed`` is the augmentation's.

    Raises:
        DataError: the data are not there or not usable as they are.
    """
    _require_only_what_is_read(data)
    try:
        train, val = _open(data)
        fingerprint = {"train": train.fingerprint(), "val": val.fingerprint()}
    except OSError as error:  # no permission, a dangling link, a lost network file system
        raise DataError(f"data={data.source} cannot be read: {error}") from error
    return DataSets(
        train=AugmentedDataset(train, training_transform(data, augment), seed),
        val=AugmentedDataset(val, validation_transform(data), seed),
        classes=train.classes,
        fingerprint=fingerprint,
    )


def _open(data: DataConfig) -> tuple[Source, Source]:
    if data.source == "digits":
        return arrays.digits(data.image_size)
    if data.source == "cifar10":
        return arrays.cifar10(data.root)
    if data.source == "imagefolder":
        return folders.imagefolder(data.train, data.val)
    return folders.imagenet(data.root)


def _require_only_what_is_read(data: DataConfig) -> None:
    read = _LOCATIONS[data.source]
    for option in ("root", "train", "val"):
        value = getattr(data, option)
        if value and option not in read:
            uses = " ".join(f"data.{name}=DIR" for name in read) or "no folder at all"
            raise DataError(
                f"data.{option}={value} would not be read: data={data.source} uses {uses}. For "
                "your own folders choose data=imagefolder data.train=DIR data.val=DIR."
            )
