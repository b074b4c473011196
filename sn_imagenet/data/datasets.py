"""The data sets of a run, keyed by (epoch, index)."""

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
from sn_imagenet.data.pixels import Normalizer, StoredBatch
from sn_imagenet.data.seeding import derive_seed, seeded
from sn_imagenet.data.sources import Source, open_source
from sn_imagenet.data.subset import choose_part
from sn_imagenet.data.transforms import training_crop, validation_crop

# data.decode: "exact" gives the pixels of Pillow and torchvision's transforms.
CROPPERS: dict[str, Callable[[np.ndarray, CropParams, Tensor], None]] = {
    "exact": crop_exact,
    "fast": crop_fast,
}
_CPU = torch.device("cpu")


class AugmentedDataset(Dataset[tuple[Tensor, int]]):
    """``dataset[epoch, index]`` is (float32 [3, S, S], label): sample ``index`` of ``source``,
    transformed by draws that are a function of (seed, epoch, index) only. A loader asks for many
    at once, as they are stored, and finishes them on the device.

    Args:
        sample_crop: what becomes of an image, from its (height, width).
        training: whether the samples are for training, of which an error says the epoch.

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
        return Normalizer(self.data, _CPU)(batch)[0], int(batch.labels[0])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> StoredBatch:
        """The samples of ``keys`` as one batch, each copied into it once."""
        opened, crops = [], []
        for epoch, index in keys:
            with self._telling_when(epoch):
                opened.append(self.source.open(index))
        # All in a row: after a decoder has used the processor's caches, drawing takes thrice as
        # long.
        for (epoch, index), sample in zip(keys, opened, strict=True):
            with seeded(derive_seed("augment", self.seed, epoch, index)):
                crops.append(self.sample_crop(*sample.size))
        side = self.data.image_size
        images = None
        for place, ((epoch, _), sample, crop) in enumerate(zip(keys, opened, crops, strict=True)):
            with self._telling_when(epoch):
                image = sample.pixels(crop.bottom)
            stored = isinstance(image, np.ndarray)
            if images is None:
                shape = (side, side, 3) if stored else (3, side, side)
                images = _empty((len(keys), *shape), torch.uint8 if stored else torch.float32)
            if isinstance(image, np.ndarray):
                CROPPERS[self.data.decode](image, crop, images[place])
            else:
                crop_float(image, crop, images[place])
        assert images is not None, "a batch has a sample"
        return StoredBatch(
            images,
            torch.tensor([sample.label for sample in opened]),
            torch.tensor([crop.flip for crop in crops])
            if any(crop.flip for crop in crops)
            else None,
            torch.tensor([crop.shift or (0.0, 0.0, 0.0) for crop in crops])
            if any(crop.shift for crop in crops)
            else None,
        )

    @contextmanager
    def _telling_when(self, epoch: int) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            if not self.training:
                raise
            when = f"epoch {epoch + 1}" if epoch >= 0 else "the calibration"
            raise DataError(f"in {when}: {error}") from error


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a batch; in a worker it is shared with the process that asked, so that it is not
    copied on the way."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]


@dataclass(frozen=True)
class DataSets:
    """``train`` is augmented; ``val`` (Resize, CenterCrop, Normalize) ignores the key's epoch.
    ``fingerprint`` can be written as JSON:
    {"train": {"samples": count, "sha256": hex}, "val": {...}}, each with ``left_out``, the names
    of files that are marked as bad, if there are any."""

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
    sample_crop = training_crop(data, augment)
    train, val = choose_part(data, *open_source(data))
    fingerprint = {"train": train.fingerprint(), "val": val.fingerprint()}
    return DataSets(
        train=AugmentedDataset(train, data, sample_crop, seed),
        val=AugmentedDataset(val, data, validation_crop(data), seed, training=False),
        classes=train.classes,
        fingerprint=fingerprint,
    )
