"""Images with their objects: data sets keyed by (epoch, index), and batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.functional import convert_image_dtype

from sn_imagenet.data.decode import UndecodableError, decode
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.seeding import derive_seed
from sn_imagenet.runs.reading import open_to_read
from sn_imagenet.tasks.detection.coco import Annotations, usable_objects


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
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        dtype = torch.get_default_dtype()
        return replace(
            moved, images=tuple(convert_image_dtype(image, dtype) for image in moved.images)
        )

    def pin_memory(self) -> DetectionBatch:
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> DetectionBatch:
        targets = [{key: change(value) for key, value in t.items()} for t in self.targets]
        return DetectionBatch(tuple(map(change, self.images)), tuple(targets), self.indices)


class DetectionDataset(Dataset[Any]):
    """``dataset.__getitems__([(epoch, index), ...])`` is a :class:`DetectionBatch`.

    A training image is flipped by a draw of (seed, epoch, image id). Its objects are those of
    :func:`.usable_objects`.

    Args:
        folder: of the images.
        chosen: int64 [n], the images of ``annotations`` that the data set has.
        training: whether the batches have targets.
        flip: whether images are flipped.
        masks: whether targets have masks.

    Raises (on access):
        DataError: the image cannot be decoded, or has another size than the annotations say.
    """

    def __init__(
        self,
        annotations: Annotations,
        folder: Path,
        chosen: np.ndarray,
        seed: int = 0,
        *,
        training: bool = False,
        flip: bool = False,
        masks: bool = False,
    ) -> None:
        self.annotations, self.folder, self.chosen = annotations, folder, chosen
        self.seed, self.training, self.flip, self.masks = seed, training, flip, masks

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height of each image, float64 [n]."""
        height, width = self.annotations.sizes[self.chosen].T
        ratios: np.ndarray = width / height
        return ratios

    def fingerprint(self) -> dict[str, Any]:
        images = len(self.annotations)
        return {"samples": len(self), "images": images, "sha256": self.annotations.sha256}

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> DetectionBatch:
        images, targets = zip(*(self._sample(*key) for key in keys), strict=True)
        indices = tuple(index for _, index in keys)
        return DetectionBatch(images, targets if self.training else (), indices)

    def finisher(self, device: torch.device) -> Callable[[DetectionBatch], DetectionBatch]:
        """What moves the batches of :meth:`__getitems__` to the device."""
        return lambda batch: batch.to(device)

    def _sample(self, epoch: int, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        entry = self.annotations.image(int(self.chosen[index]))
        image = read_image(entry, self.folder)
        if not self.training:
            return image, {}
        target = target_of(entry, self.annotations.categories, self.masks)
        if self.flip and derive_seed("flip", self.seed, epoch, entry["id"]) % 2:
            image = image.flip(2)
            target["boxes"][:, [0, 2]] = entry["width"] - target["boxes"][:, [2, 0]]
            if self.masks:
                target["masks"] = target["masks"].flip(2)
        return image, target


def read_image(entry: Mapping[str, Any], folder: Path) -> Tensor:
    """The image of an entry of the annotations as RGB, uint8 [3, H, W].

    Raises:
        DataError: it cannot be decoded, or has another size than the annotations say.
    """
    path = folder / entry["file_name"]
    try:
        with open_to_read(path) as file:
            pixels = decode(file.read())
    except (OSError, UndecodableError) as error:
        raise DataError(f"{path} cannot be read as an image ({error})") from error
    height, width = entry["height"], entry["width"]
    if pixels.shape[:2] != (height, width):
        raise DataError(
            f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, and {width} x {height} in "
            "its annotations"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def target_of(
    entry: Mapping[str, Any], categories: Sequence[Mapping[str, Any]], masks: bool
) -> dict[str, Tensor]:
    """What torchvision's detectors train on: the usable objects of an image's entry, with labels
    from 1 in the order of the categories."""
    used = usable_objects(entry)
    labels = {category["id"]: label for label, category in enumerate(categories, start=1)}
    boxes = torch.tensor([o["bbox"] for o in used], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    target = {
        "boxes": clip_boxes_to_image(boxes, (entry["height"], entry["width"])),
        "labels": torch.tensor([labels[o["category_id"]] for o in used], dtype=torch.int64),
    }
    if masks:
        from pycocotools import mask

        empty = np.zeros((entry["height"], entry["width"], 0), np.uint8)
        decoded = mask.decode([o["segmentation"] for o in used]) if used else empty
        target["masks"] = torch.from_numpy(decoded).permute(2, 0, 1).contiguous()
    return target
