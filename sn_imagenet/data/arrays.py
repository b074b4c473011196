"""Data sets that fit in memory."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from sn_imagenet.data.sources import Sample


class ArraySource:
    """Images in one tensor [N, 3, H, W], uint8 or float32 in [0, 1].

    Args:
        stored: the images before any preprocessing, for the fingerprint.
    """

    def __init__(
        self, images: Tensor, labels: np.ndarray, classes: tuple[str, ...], stored: np.ndarray
    ) -> None:
        self.images = images
        self.labels = labels
        self.classes = classes
        digest = hashlib.sha256(np.ascontiguousarray(stored).tobytes())
        digest.update(labels.tobytes())
        self._sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Sample:
        image = self.images[index]
        return Sample(image, (image.shape[1], image.shape[2]), int(self.labels[index]))

    def location(self, index: int) -> str:
        return f"sample {index}"

    def fingerprint(self) -> dict[str, Any]:
        """Sample count and SHA-256 over the stored pixels and the labels."""
        return {"samples": len(self), "sha256": self._sha256}
