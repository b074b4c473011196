"""The data sets of a run, keyed by (epoch, index)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.seeding import derive_seed, seeded
from sn_imagenet.data.sources import Source, open_source
from sn_imagenet.data.transforms import training_transform, validation_transform


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
        ConfigError: the source or the augmentation is unknown, or its arguments do not suit it.
        DataError: the data are not there or not usable as they are.
    """
    transform = training_transform(data, augment)
    try:
        train, val = open_source(data)
        fingerprint = {"train": train.fingerprint(), "val": val.fingerprint()}
    except OSError as error:  # no permission, a dangling link, a lost network file system
        raise DataError(f"data={data.source} cannot be read: {error}") from error
    return DataSets(
        train=AugmentedDataset(train, transform, seed),
        val=AugmentedDataset(val, validation_transform(data), seed),
        classes=train.classes,
        fingerprint=fingerprint,
    )
