"""Crop and resize a decoded image to the square network input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Box = tuple[int, int, int, int]
# Pixels. A larger resized image is not made, only the square of it: 1 x 5000 pixels would become
# 256 x 1,280,000.
MAX_RESIZED = 2**24


@dataclass(frozen=True)
class CropParams:
    """How to make a square of side S from an image: crop to a box, resize, crop, translate. Drawn
    from the image's size alone, before it is decoded.

    ``box``: (top, left, height, width) of the crop of the stored image; None for the whole image.
    ``size``: (height, width) after the resize.
    ``corner``: (top, left) of the square in the resized image.
    ``translate``: (down, right) offset of the square's window in pixels, padded with 0.
    ``interpolation``: mode of the resize, bilinear or bicubic.
    """

    box: Box | None
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    translate: tuple[int, int] = (0, 0)
    interpolation: str = "bilinear"

    @property
    def rows_needed(self) -> int | None:
        """Number of rows, from the top of the stored image, that the crop reads; None: all."""
        return None if self.box is None else self.box[0] + self.box[2]


def crop_image(image: Tensor, crop: CropParams, side: int, decode: str = "exact") -> Tensor:
    """The square [3, S, S] that ``crop`` describes of ``image`` [3, H, W], in its dtype.

    Args:
        side: S.
        decode: how uint8 is resized. ``exact``: by Pillow, bit-identical to torchvision's
            transforms of a PIL image. ``fast``: by torch, whose vectorized resize rounds its
            weights to 16 bits. Float images are always resized by torch.
    """
    if crop.box is not None:
        top, left, height, width = crop.box
        image = image[:, top : top + height, left : left + width]
    (top, left), (height, width) = crop.corner, crop.size
    if height * width > MAX_RESIZED and image.dtype == torch.uint8:
        down, right = image.shape[1] / height, image.shape[2] / width
        box = (left * right, top * down, (left + side) * right, (top + side) * down)
        image, top, left = _resize_with_pillow(image, crop.interpolation, (side, side), box), 0, 0
    elif image.shape[1:] != crop.size:
        if decode == "exact" and image.dtype == torch.uint8:
            image = _resize_with_pillow(image, crop.interpolation, crop.size)
        else:
            # With the strides of a channels_last batch, which image[None] has not, torch resizes
            # faster, and into the layout of the batch.
            batch = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
            image = F.interpolate(batch, crop.size, mode=crop.interpolation, antialias=True)[0]
    if image.shape[1:] != (side, side):
        image = image[:, top : top + side, left : left + side]
    y, x = crop.translate
    return F.pad(image, (-x, x, -y, y)) if crop.translate != (0, 0) else image


def _resize_with_pillow(
    image: Tensor,
    interpolation: str,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Tensor:
    """``image``, or only its ``box`` (left, top, right, bottom), resized to (height, width)."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = picture.resize(size[::-1], Image.Resampling[interpolation.upper()], box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
