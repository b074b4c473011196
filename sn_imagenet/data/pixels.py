"""The part of the transform that runs on whole batches on the device (color shift, normalization),
and the copy to the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sn_imagenet.config import DataConfig
from sn_imagenet.norms.kernels import triton_backend

CACHED_VALUES = 2**17  # in float32 half a megabyte


class StoredBatch(NamedTuple):
    """A batch as the loader workers send it, before the transform on the device.

    ``images``: uint8 or, from float sources, float32 in [0, 1]; [n, 3, S, S], channels_last.
    ``labels``: int64 [n]. ``shifts``: float32 [n, 3], added to the channels, in units of [0, 1], or
    None.
    """

    images: Tensor
    labels: Tensor
    shifts: Tensor | None


class DeviceTransform:
    """``transform(batch)``: ``dtype`` [n, 3, S, S], channels_last; scaled to [0, 1], color shifted
    and normalized with ``data.mean`` and ``data.std``. Each value is rounded in the same way as by
    torchvision's transforms of a single image, and then to ``dtype``. The copy from pinned memory
    is asynchronous."""

    def __init__(
        self, data: DataConfig, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.dtype = dtype
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)

    def __call__(self, batch: StoredBatch) -> Tensor:
        stored, shifts = batch.images.to(self.mean.device, non_blocking=True), batch.shifts
        if stored.dtype == torch.uint8 and triton_backend.runs_for(stored):
            from sn_imagenet.data.triton_pixels import normalize

            stored = stored.contiguous(memory_format=torch.channels_last)
            if shifts is not None:
                shifts = shifts.to(stored.device, non_blocking=True)
            return normalize(stored, shifts, self.mean, self.std, self.dtype)
        return self._by_rows(stored, shifts).to(self.dtype)

    def _by_rows(self, stored: Tensor, shifts: Tensor | None) -> Tensor:
        """A few images at a time, which stay in the cache, and by rows, which are long enough for
        vector instructions, unlike the three channels of a pixel."""
        n, _, height, width = stored.shape
        rows = stored.permute(0, 2, 3, 1).contiguous().view(n, height, 3 * width)
        images = torch.empty_like(rows, dtype=torch.float32)
        mean, std = self.mean.repeat(width), self.std.repeat(width)
        if shifts is not None:
            shifts = shifts.to(stored.device, non_blocking=True).repeat(1, width)[:, None]
        step = max(1, CACHED_VALUES // (3 * height * width))
        for at in (slice(start, start + step) for start in range(0, n, step)):
            image = images[at].copy_(rows[at])
            if stored.dtype == torch.uint8:
                image.mul_(1 / 255)
            if shifts is not None:
                image.add_(shifts[at])
            image.sub_(mean).div_(std)
        return images.view(n, height, width, 3).permute(0, 3, 1, 2)
