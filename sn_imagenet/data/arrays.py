"""Data sets that fit in memory."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor


class ArraySource:
    """Images in one array. ``source[i]`` is (uint8 array [H, W, 3], or float32 tensor [3, H, W]
    in [0, 1]; label).

    Args:
        stored: the images as they were before anything was made of them, for the fingerprint.
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

    def __getitem__(self, index: int) -> tuple[np.ndarray | Tensor, int]:
        return self.images[index], int(self.labels[index])

    def fingerprint(self) -> dict[str, Any]:
        """Of the stored pixels and the labels."""
        return {"samples": len(self), "sha256": self._sha256}
