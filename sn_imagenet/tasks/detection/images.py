"""Images with their objects: data sets keyed by (epoch, index), and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sn_imagenet.data.decode import UndecodableError, decode
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.seeding import derive_seed
from sn_imagenet.tasks.detection.coco import Annotations


@dataclass(frozen=True)
class DetectionBatch:
    """``images``: uint8 [3, H, W] each, as stored; :meth:`to` makes them floats in [0, 1], of
    PyTorch's default dtype. ``targets``: boxes float32 [m, 4] (x1, y1, x2, y2), labels int64 [m]
    from 1, and masks uint8 [m, H, W] if the model has them; () in an evaluation. ``indices``: of
    the images in the data set.
    """

    images: tuple[Tensor, ...]
    targets: tuple[dict[str, Tensor], ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor) -> DetectionBatch:
        """The samples at ``indices`` (int64 [m]), in that order."""
        chosen = indices.tolist()
        return DetectionBatch(
            tuple(self.images[i] for i in chosen),
            tuple(self.targets[i] for i in chosen) if self.targets else (),
            tuple(self.indices[i] for i in chosen),
        )

    def to(self, device: torch.device) -> DetectionBatch:
        dtype = torch.get_default_dtype()
        images = (image.to(device, non_blocking=True) for image in self.images)
        return DetectionBatch(
            tuple(i if i.is_floating_point() else i.to(dtype).div_(255) for i in images),
            tuple(
                {key: value.to(device, non_blocking=True) for key, value in target.items()}
                for target in self.targets
            ),
            self.indices,
        )

    def pin_memory(self) -> DetectionBatch:
        return replace(
            self,
            images=tuple(image.pin_memory() for image in self.images),
            targets=tuple({k: v.pin_memory() for k, v in t.items()} for t in self.targets),
        )


class DetectionDataset(Dataset[Any]):
    """``dataset.__getitems__([(epoch, index), ...])`` is a :class:`DetectionBatch`.

    A training image is flipped by a draw of (seed, epoch, image id). Its objects are those of
    :attr:`Annotations.usable`.

    Args:
        folder: of the images.
        chosen: int64 [n], the images of ``annotations`` that the data set has.
        training: whether the batches have targets and flips.
        flip: whether training images are flipped.
        masks: whether targets have masks.

    Raises (on access):
        DataError: the image cannot be decoded, or has another size than the annotations say.
    """

    def __init__(
        self,
        annotations: Annotations,
        folder: Path,
        chosen: np.ndarray,
        seed: int,
        *,
        training: bool,
        flip: bool = False,
        masks: bool = False,
    ) -> None:
        self.annotations = annotations
        self.folder = folder
        self.chosen = chosen
        self.seed = seed
        self.training = training
        self.flip = flip
        self.masks = masks

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height of each image, float64 [n]."""
        height, width = self.annotations.sizes[self.chosen].T
        ratios: np.ndarray = width / height
        return ratios

    def fingerprint(self) -> dict[str, Any]:
        return {
            "samples": len(self),
            "images": len(self.annotations),
            "objects": len(self.annotations.ids),
            "sha256": self.annotations.sha256,
        }

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> DetectionBatch:
        samples = [self._sample(epoch, index) for epoch, index in keys]
        return DetectionBatch(
            tuple(image for image, _ in samples),
            tuple(target for _, target in samples) if self.training else (),
            tuple(index for _, index in keys),
        )

    def _sample(self, epoch: int, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        position = int(self.chosen[index])
        image = read_image(self.annotations, self.folder, position)
        if not self.training:
            return image, {}
        target = target_of(self.annotations, position, self.masks)
        image_id = int(self.annotations.image_ids[position])
        if self.flip and derive_seed("flip", self.seed, epoch, image_id) % 2:
            return _flip(image, target)
        return image, target


def read_image(annotations: Annotations, folder: Path, position: int) -> Tensor:
    """The image at ``position`` of the annotations as RGB, uint8 [3, H, W].

    Raises:
        DataError: it cannot be decoded, or has another size than the annotations say.
    """
    path = folder / str(annotations.files[position])
    try:
        pixels = decode(path.read_bytes())
    except (OSError, UndecodableError) as error:
        raise DataError(f"{path} cannot be read as an image ({error})") from error
    expected = annotations.sizes[position].tolist()
    if list(pixels.shape[:2]) != expected:
        raise DataError(
            f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, and {expected[1]} x "
            f"{expected[0]} in its annotations"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def target_of(annotations: Annotations, position: int, masks: bool) -> dict[str, Tensor]:
    part = annotations.objects(position)
    used = np.flatnonzero(annotations.usable[part]) + part.start
    boxes = torch.as_tensor(annotations.boxes[used], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    height, width = annotations.sizes[position].tolist()
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    target = {"boxes": boxes, "labels": torch.from_numpy(annotations.labels[used] + 1)}
    if masks:
        from pycocotools import mask

        decoded = mask.decode([annotations.rle(position, int(obj)) for obj in used])
        target["masks"] = torch.from_numpy(decoded).permute(2, 0, 1).contiguous()
    return target


def _flip(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    width = image.shape[2]
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    flipped = {**target, "boxes": boxes}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(2)
    return image.flip(2), flipped
