"""What is left of a sample's transformation once its batch is on the device: flip, colour,
normalisation; and the way there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sn_imagenet.config import DataConfig


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
    normalised by ``data.mean`` and ``data.std``, each value rounded as torchvision's transforms of
    one image round it. The images are channels_last."""

    def __init__(self, data: DataConfig, device: torch.device) -> None:
        self.mean = torch.tensor(data.mean, device=device)[:, None, None]
        self.std = torch.tensor(data.std, device=device)[:, None, None]

    def __call__(self, batch: StoredBatch) -> Tensor:
        stored = batch.images
        if stored.dtype == torch.uint8:
            stored = stored.permute(0, 3, 1, 2)
        images = torch.empty(stored.shape, device=stored.device, memory_format=torch.channels_last)
        shifts = None if batch.shifts is None else batch.shifts[:, :, None, None]
        if images.device.type == "cpu":
            # One image after the other, each of which stays in the processor's cache.
            mean, std = (_in_rows(values, stored.shape[3]) for values in (self.mean, self.std))
            flips = [False] * len(stored) if batch.flips is None else batch.flips.tolist()
            for i, flip in enumerate(flips):
                image = stored[i].flip(2) if flip else stored[i]
                shift = None if shifts is None else _in_rows(shifts[i], stored.shape[3])
                _normalize(image, shift, mean, std, images[i])
            return images
        if batch.flips is not None:
            stored = torch.where(batch.flips[:, None, None, None], stored.flip(3), stored)
        _normalize(stored, shifts, self.mean, self.std, images)
        return images


def _normalize(
    stored: Tensor, shifts: Tensor | None, mean: Tensor, std: Tensor, out: Tensor
) -> None:
    out.copy_(stored)
    if stored.dtype == torch.uint8:
        out.mul_(1 / 255)
    if shifts is not None:
        out.add_(shifts)
    out.sub_(mean).div_(std)


def _in_rows(values: Tensor, width: int) -> Tensor:
    """[3, 1, 1] -> [3, 1, width], channels_last: an operator runs along a whole row of pixels at
    once, and not over three numbers at a time.
    """
    return values.permute(1, 2, 0).expand(1, width, 3).contiguous().permute(2, 0, 1)


def on_device(
    batches: Iterable[StoredBatch], normalizer: Normalizer, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images float32 [n, 3, S, S], labels int64 [n]) of each batch, on ``device``.

    On CUDA the copy and the normalisation are queued on a stream of their own, so that they go on
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
