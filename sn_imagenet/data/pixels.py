"""The part of the transform that runs on whole batches on the device (color shift, normalization),
and the copy to the device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sn_imagenet.config import DataConfig
from sn_imagenet.native import load_library
from sn_imagenet.norms.kernels import triton_backend

SOURCE = Path(__file__).with_name("pixels.cpp")


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
        on_cpu = stored.dtype == torch.uint8 and stored.device.type == "cpu"
        if on_cpu and (compiled := _compiled_normalize()) is not None:
            return self._run_compiled(compiled, stored, shifts).to(self.dtype)
        images = stored.to(torch.float32, copy=True, memory_format=torch.channels_last)
        if stored.dtype == torch.uint8:
            images.mul_(1 / 255)
        if shifts is not None:
            images.add_(shifts.to(images.device, non_blocking=True)[:, :, None, None])
        return images.sub_(self.mean[:, None, None]).div_(self.std[:, None, None]).to(self.dtype)

    def _run_compiled(
        self, compiled: Callable[..., None], stored: Tensor, shifts: Tensor | None
    ) -> Tensor:
        stored = stored.contiguous(memory_format=torch.channels_last)
        images = torch.empty_like(stored, dtype=torch.float32)
        count, _, height, width = stored.shape
        threads = torch.get_num_threads() if count > 1 else 1
        tensors = (stored, shifts, self.mean, self.std, images)
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        compiled(*pointers, count, height, width, threads)
        return images


@cache
def _compiled_normalize() -> Callable[..., None] | None:
    """The function of pixels.cpp. If it cannot be built, logs a warning and returns None."""
    library = load_library(
        SOURCE, "-ffp-contract=off", otherwise="images are normalized by five operators"
    )
    if library is None:
        return None
    function: Callable[..., None] = library.normalize
    pointer, index = ctypes.c_void_p, ctypes.c_int64
    library.normalize.argtypes = [*[pointer] * 5, *[index] * 3, ctypes.c_int]
    library.normalize.restype = None
    return function
