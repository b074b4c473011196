"""The training and validation data sets of a run, keyed by (epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.augment import Apply, Augmentation, Square
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.crop import CropParams, crop_image
from sn_imagenet.data.decode import UndecodableError, decode
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import prepare_command
from sn_imagenet.data.pixels import DeviceTransform, StoredBatch
from sn_imagenet.data.seeding import derive_seed, seeded
from sn_imagenet.data.sources import Sample, Source, open_source
from sn_imagenet.data.subset import select_subset
from sn_imagenet.errors import as_text

Drawn = tuple[Sample, CropParams, list[Apply]]


class AugmentedDataset(Dataset[tuple[Tensor, int]]):
    """``dataset[epoch, index]`` is (float32 [3, S, S], label): sample ``index`` of ``source``,
    augmented by random draws that depend only on (seed, epoch, index). A loader fetches whole
    batches in their stored dtype instead, and applies the rest of the transform on the device.

    Args:
        augment: None for validation samples, whose errors do not name the epoch.

    Raises (on access):
        DataError: the sample's file cannot be decoded.
    """

    def __init__(
        self, source: Source, data: DataConfig, augment: AugmentConfig | None, seed: int
    ) -> None:
        self.source = source
        self.data = data
        self.augmentation = Augmentation(data, augment)
        self.training = augment is not None
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        images, labels = self.finisher(torch.device("cpu"))(self.__getitems__([key]))
        return images[0], int(labels[0])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> StoredBatch:
        """The samples of ``keys`` as one batch."""
        # All are drawn before the first is decoded, because a decoder displaces the processor's
        # caches, after which drawing takes a tenth of the loader's time.
        drawn = [self._draw(*key) for key in keys]
        stored, side = drawn[0][0].stored, self.data.image_size
        images = torch.empty(
            (len(keys), 3, side, side),
            dtype=torch.uint8 if isinstance(stored, bytes) else stored.dtype,
            memory_format=torch.channels_last,
        )
        shifts = []
        for square, key, draw in zip(images, keys, drawn, strict=True):
            image, shift = self._load(*key, draw)
            square.copy_(image)
            shifts.append(shift)
        labels = torch.tensor([sample.label for sample, _, _ in drawn])
        return StoredBatch(images, labels, torch.tensor(shifts) if any(map(any, shifts)) else None)

    def finisher(
        self, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Callable[[StoredBatch], ImageBatch]:
        """What turns the batches of :meth:`__getitems__` into those of the network."""
        transform = DeviceTransform(self.data, device, dtype)
        return lambda batch: ImageBatch(
            transform(batch), batch.labels.to(device, non_blocking=True)
        )

    def _draw(self, epoch: int, index: int) -> Drawn:
        with self._explained(epoch, index):
            sample = self.source.open(index)
        with seeded(derive_seed("augment", self.seed, epoch, index)):
            return sample, *self.augmentation(*sample.size)

    def _load(self, epoch: int, index: int, drawn: Drawn) -> Square:
        sample, crop, operations = drawn
        image = sample.stored
        if isinstance(image, bytes):
            with self._explained(epoch, index):
                image = torch.from_numpy(decode(image, crop.rows_needed)).permute(2, 0, 1)
        square = Square(crop_image(image, crop, self.data.image_size, self.data.decode))
        for apply in operations:
            square = apply(square)
        return square

    @contextmanager
    def _explained(self, epoch: int, index: int) -> Iterator[None]:
        try:
            yield
        except (UndecodableError, DataError) as error:
            text = str(error)
            if isinstance(error, UndecodableError):
                folder = self.data.root or (self.data.train if self.training else self.data.val)
                text = (
                    f"{self.source.location(index)} cannot be read as an image ({error}): sample "
                    f"{index}, class {self.source.classes[self.source.labels[index]]}. Nothing is "
                    "substituted for it. Replace it with an intact copy, or mark all such files, "
                    f"which leaves them out: {prepare_command(str(folder))} --mark"
                )
            if self.training:
                text = f"in {f'epoch {epoch + 1}' if epoch >= 0 else 'the calibration'}: {text}"
            raise DataError(text) from error


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
    Augmentation(data, augment)  # its errors first
    train, val = select_subset(data, *open_source(data))
    return DataSets(
        train=AugmentedDataset(train, data, augment, seed),
        val=AugmentedDataset(val, data, None, seed),
        classes=tuple(map(as_text, train.classes)),  # they are written to files
        fingerprint={"train": train.fingerprint(), "val": val.fingerprint()},
    )
