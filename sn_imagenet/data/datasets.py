"""The training and validation data sets of a run, keyed by (epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.crop_image import CropParams, crop_exact, crop_fast, crop_float
from sn_imagenet.data.crops import SampleCrop
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.pixels import DeviceTransform, StoredBatch
from sn_imagenet.data.seeding import derive_seed, seeded
from sn_imagenet.data.sources import Source, open_source
from sn_imagenet.data.subset import select_subset
from sn_imagenet.data.transforms import training_crop, validation_crop

# By data.decode; "exact" matches Pillow and torchvision's transforms bit for bit.
CROPPERS: dict[str, Callable[[np.ndarray, CropParams, Tensor], None]] = {
    "exact": crop_exact,
    "fast": crop_fast,
}
_CPU = torch.device("cpu")


class AugmentedDataset(Dataset[tuple[Tensor, int]]):
    """``dataset[epoch, index]`` is (float32 [3, S, S], label): sample ``index`` of ``source``,
    augmented by random draws that depend only on (seed, epoch, index). A loader fetches whole
    batches in their stored dtype instead, and applies the rest of the transform on the device.

    Args:
        sample_crop: maps an image's (height, width) to its crop.
        training: whether these are training samples. Their errors name the epoch.

    Raises (on access):
        DataError: the sample's file cannot be decoded.
    """

    def __init__(
        self,
        source: Source,
        data: DataConfig,
        sample_crop: SampleCrop,
        seed: int,
        training: bool = True,
    ) -> None:
        self.source = source
        self.data = data
        self.sample_crop = sample_crop
        self.seed = seed
        self.training = training

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        batch = self.__getitems__([key])
        return DeviceTransform(self.data, _CPU)(batch)[0], int(batch.labels[0])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> StoredBatch:
        """The samples of ``keys`` as one batch. Each is copied once."""
        samples, crops = [], []
        for epoch, index in keys:
            with self._add_epoch_to_errors(epoch):
                samples.append(self.source.open(index))
        # Drawn in one loop, because drawing takes three times as long after a decoder has
        # displaced the processor's caches.
        for (epoch, index), sample in zip(keys, samples, strict=True):
            with seeded(derive_seed("augment", self.seed, epoch, index)):
                crops.append(self.sample_crop(*sample.size))
        side = self.data.image_size
        images = None
        for i, ((epoch, _), sample, crop) in enumerate(zip(keys, samples, crops, strict=True)):
            with self._add_epoch_to_errors(epoch):
                image = sample.pixels(crop.rows_needed)
            uint8 = isinstance(image, np.ndarray)
            if images is None:
                shape = (side, side, 3) if uint8 else (3, side, side)
                images = _empty_batch((len(keys), *shape), torch.uint8 if uint8 else torch.float32)
            if isinstance(image, np.ndarray):
                CROPPERS[self.data.decode](image, crop, images[i])
            else:
                crop_float(image, crop, images[i])
        assert images is not None, "a batch has at least one sample"
        return StoredBatch(
            images,
            torch.tensor([sample.label for sample in samples]),
            torch.tensor([crop.flip for crop in crops])
            if any(crop.flip for crop in crops)
            else None,
            torch.tensor([crop.shift or (0.0, 0.0, 0.0) for crop in crops])
            if any(crop.shift for crop in crops)
            else None,
        )

    @contextmanager
    def _add_epoch_to_errors(self, epoch: int) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            if not self.training:
                raise
            when = f"epoch {epoch + 1}" if epoch >= 0 else "the calibration"
            raise DataError(f"in {when}: {error}") from error


def _empty_batch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a batch. A worker allocates it in shared memory, so that sending the batch to the
    main process does not copy it."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]


@dataclass(frozen=True)
class DataSets:
    """``train`` is augmented; ``val`` (Resize, CenterCrop, Normalize) ignores the key's epoch, and
    may be None.
    ``fingerprint`` is JSON-serializable: {"train": {"samples": count, "sha256": hex}, "val":
    {...}}. If files are marked as bad, ``left_out`` lists their names."""

    train: AugmentedDataset
    val: AugmentedDataset | None
    classes: tuple[str, ...]
    fingerprint: dict[str, Any]


def build(data: DataConfig, augment: AugmentConfig, seed: int) -> DataSets:
    """Open the data set that ``data`` describes; ``seed`` is the augmentation's.

    Raises:
        ConfigError: the source or the augmentation is unknown, or its arguments are invalid.
        DataError: the data are missing or unusable.
    """
    sample_crop = training_crop(data, augment)
    train, val = select_subset(data, *open_source(data))
    fingerprint = {"train": train.fingerprint(), "val": val.fingerprint()}
    return DataSets(
        train=AugmentedDataset(train, data, sample_crop, seed),
        val=AugmentedDataset(val, data, validation_crop(data), seed, training=False),
        classes=train.classes,
        fingerprint=fingerprint,
    )
