"""What is left of a sample's transformation once its batch is on the device: flip, color,
normalization; and the way there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sn_imagenet.config import DataConfig
from sn_imagenet.norms.kernels.compiler import load_library

SOURCE = Path(__file__).with_name("pixels.cpp")


class StoredBatch(NamedTuple):
    """A batch as the loader's workers send it.

    ``images``: uint8 [n, S, S, 3] or, from sources that hold floats, float32 [n, 3, S, S] in
    [0, 1]. ``labels``: int64 [n]. ``flips``: bool [n], which images to mirror. ``shifts``: float32
    [n, 3], what to add to the channels, in units of [0, 1]. Either is None where none is drawn.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor | None
    shifts: Tensor | None

    def to(self, device: torch.device) -> StoredBatch:
        """The batch on ``device``, copied without waiting where it is pinned."""
        images, labels, flips, shifts = (
            part if part is None else part.to(device, non_blocking=True) for part in self
        )
        assert images is not None and labels is not None
        return StoredBatch(images, labels, flips, shifts)


class Normalizer:
    """``normalizer(batch)``: float32 [n, 3, S, S], flipped, scaled to [0, 1], shifted and
    normalized by ``data.mean`` and ``data.std``, each value rounded as torchvision's transforms of
    one image round it. The images are channels_last."""

    def __init__(self, data: DataConfig, device: torch.device) -> None:
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)

    def __call__(self, batch: StoredBatch) -> Tensor:
        stored = batch.images
        if stored.dtype == torch.uint8:
            stored = stored.permute(0, 3, 1, 2)
        on_cpu = stored.device.type == "cpu"
        compiled = _compiled() if on_cpu and stored.dtype == torch.uint8 else None
        if compiled is not None:
            return self._in_one_look(compiled, batch)
        # On a CPU an operator runs along a channel, not over three numbers at a time.
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

    def _in_one_look(self, compiled: Callable[..., None], batch: StoredBatch) -> Tensor:
        stored = batch.images.permute(0, 3, 1, 2)
        images = torch.empty(stored.shape, memory_format=torch.channels_last)
        count, height, width, _ = batch.images.shape
        threads = torch.get_num_threads() if count > 1 else 1
        parts = (batch.images, batch.flips, batch.shifts)
        read = [None if part is None else part.contiguous() for part in parts]
        tensors = (*read, self.mean, self.std, images)
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        compiled(*pointers, count, height, width, threads)
        return images


@cache
def _compiled() -> Callable[..., None] | None:
    """pixels.cpp's function; None where it cannot be built, which is said."""
    library = load_library(SOURCE, "-ffp-contract=off", instead="of images takes five operators")
    if library is None:
        return None
    function: Callable[..., None] = library.normalize
    pointer, index = ctypes.c_void_p, ctypes.c_int64
    library.normalize.argtypes = [*[pointer] * 6, *[index] * 3, ctypes.c_int]
    library.normalize.restype = None
    return function


def on_device(
    batches: Iterable[StoredBatch], normalizer: Normalizer, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images float32 [n, 3, S, S], labels int64 [n]) of each batch, on ``device``.

    On CUDA the copy and the normalization are queued on a stream of their own, so that they go on
    beside whatever the caller has queued before asking for the batch.
    """
    if device.type != "cuda":
        for batch in batches:
            yield normalizer(batch), batch.labels
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            there = batch.to(device)
            images = normalizer(there)
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in (images, there.labels):
            tensor.record_stream(current)  # its memory is not given anew before that is done
        yield images, there.labels
