"""A batch of images with their labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """``images`` [n, 3, S, S], float32 or of the step's precision, and ``labels`` int64 [n];
    iterates over the two."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels))

    def select(self, indices: Tensor) -> ImageBatch:
        """The samples at ``indices`` (int64 [m]), in that order."""
        if self.images.is_cuda:  # indexing with a CPU tensor would wait for the device
            indices = indices.pin_memory().to(self.images.device, non_blocking=True)
        return ImageBatch(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> ImageBatch:
        """The batch on ``device``, with channels_last images; copies from pinned memory are
        asynchronous."""
        return ImageBatch(
            self.images.to(device, non_blocking=True, memory_format=torch.channels_last),
            self.labels.to(device, non_blocking=True),
        )
