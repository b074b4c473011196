"""The part of the transform that runs on whole batches on the device (flip, color, normalization),
and the copy to the device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sn_imagenet.config import DataConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.native import load_library

SOURCE = Path(__file__).with_name("pixels.cpp")


class StoredBatch(NamedTuple):
    """A batch as the loader workers send it, before the transform on the device.

    ``images``: uint8 [n, S, S, 3] or, from float sources, float32 [n, 3, S, S] in [0, 1].
    ``labels``: int64 [n]. ``flips``: bool [n], which images to mirror. ``shifts``: float32 [n, 3],
    added to the channels, in units of [0, 1]. ``flips`` and ``shifts`` are None if unused.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor | None
    shifts: Tensor | None

    def to(self, device: torch.device) -> StoredBatch:
        """The batch on ``device``; the copy from pinned memory is asynchronous."""
        images, labels, flips, shifts = (
            part if part is None else part.to(device, non_blocking=True) for part in self
        )
        assert images is not None and labels is not None
        return StoredBatch(images, labels, flips, shifts)


class DeviceTransform:
    """``transform(batch)``: float32 [n, 3, S, S], channels_last; flipped, scaled to [0, 1], color
    shifted and normalized with ``data.mean`` and ``data.std``. Each value is rounded in the same
    way as by torchvision's transforms of a single image."""

    def __init__(self, data: DataConfig, device: torch.device) -> None:
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)

    def __call__(self, batch: StoredBatch) -> Tensor:
        stored = batch.images
        if stored.dtype == torch.uint8:
            stored = stored.permute(0, 3, 1, 2)
        on_cpu = stored.device.type == "cpu"
        compiled = _compiled_normalize() if on_cpu and stored.dtype == torch.uint8 else None
        if compiled is not None:
            return self._run_compiled(compiled, batch)
        # CPU operators are fast along a contiguous channel, slow over three interleaved values.
        layout = torch.contiguous_format if on_cpu else torch.channels_last
        images = torch.empty(stored.shape, device=stored.device, memory_format=layout)
        if batch.flips is not None:
            stored = torch.where(batch.flips[:, None, None, None], stored.flip(3), stored)
        images.copy_(stored)
        if stored.dtype == torch.uint8:
            images.mul_(1 / 255)
        if batch.shifts is not None:
            images.add_(batch.shifts[:, :, None, None])
        images.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return images.contiguous(memory_format=torch.channels_last)

    def _run_compiled(self, compiled: Callable[..., None], batch: StoredBatch) -> Tensor:
        stored = batch.images.permute(0, 3, 1, 2)
        images = torch.empty(stored.shape, memory_format=torch.channels_last)
        count, height, width, _ = batch.images.shape
        threads = torch.get_num_threads() if count > 1 else 1
        inputs = (batch.images, batch.flips, batch.shifts)
        contiguous = [None if part is None else part.contiguous() for part in inputs]
        tensors = (*contiguous, self.mean, self.std, images)
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
    library.normalize.argtypes = [*[pointer] * 6, *[index] * 3, ctypes.c_int]
    library.normalize.restype = None
    return function


def on_device(
    batches: Iterable[StoredBatch], transform: DeviceTransform, device: torch.device
) -> Iterator[ImageBatch]:
    """(images float32 [n, 3, S, S], labels int64 [n]) of each batch, on ``device``.

    On CUDA, the copy and the transform run on a separate stream, in parallel with the work that the
    caller queued before it requested the batch.
    """
    if device.type != "cuda":
        for batch in batches:
            yield ImageBatch(transform(batch), batch.labels)
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            device_batch = batch.to(device)
            images = transform(device_batch)
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in (images, device_batch.labels):
            tensor.record_stream(current)  # do not reuse its memory before that stream is done
        yield ImageBatch(images, device_batch.labels)
