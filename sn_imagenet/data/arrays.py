"""Data sets that fit in memory."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from sn_imagenet.data.sources import Sample


class ArraySource:
    """Images in one array: uint8 array [N, H, W, 3], or float32 tensor [N, 3, H, W] in [0, 1].

    Args:
        stored: the images before any preprocessing, for the fingerprint.
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray,
        classes: tuple[str, ...],
        stored: np.ndarray,
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
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.shape[1:]
        return Sample((height, width), int(self.labels[index]), lambda rows=None: image)

    def fingerprint(self) -> dict[str, Any]:
        """Sample count and SHA-256 over the stored pixels and the labels."""
        return {"samples": len(self), "sha256": self._sha256}
