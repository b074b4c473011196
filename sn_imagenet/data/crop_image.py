"""Crop and resize a decoded image to the square network input, with parameters sampled beforehand.

An augmentation samples :class:`CropParams` from the image size alone. The process that decodes an
image also crops and resizes it, and keeps its dtype, uint8 or float. The flip and the color shift
are passed along and applied to the whole batch on the device (pixels.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class CropParams:
    """How to make a square of side S from an image: crop to a box, resize, crop, translate.

    ``box``: (top, left, height, width) of the crop of the stored image; None for the whole image.
    ``size``: (height, width) after the resize.
    ``corner``: (top, left) of the square in the resized image.
    ``translate``: (down, right) offset of the square's window in pixels, padded with 0.
    ``flip``: whether to mirror the square from left to right.
    ``interpolation``: mode of the resize, bilinear or bicubic.
    ``shift``: color shift added to the three channels, in units of [0, 1], or None.
    """

    box: Box | None
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    translate: tuple[int, int] = (0, 0)
    flip: bool = False
    shift: tuple[float, float, float] | None = None
    interpolation: str = "bilinear"

    @property
    def rows_needed(self) -> int | None:
        """Number of rows, from the top of the stored image, that the crop reads; None: all."""
        return None if self.box is None else self.box[0] + self.box[2]


def crop_exact(image: np.ndarray, crop: CropParams, out: Tensor) -> None:
    """Crop and resize ``image`` (uint8 [H, W, 3]) with Pillow into ``out`` (uint8 [S, S, 3]):
    bit-identical to torchvision's transforms of a PIL image."""
    region = _crop_to_box(image, crop.box)
    if region.shape[:2] != crop.size:
        height, width = crop.size
        resample = Image.Resampling[crop.interpolation.upper()]
        region = np.asarray(_as_pil_image(region).resize((width, height), resample))
    _write_square(region, crop, out.numpy())


def crop_fast(image: np.ndarray, crop: CropParams, out: Tensor) -> None:
    """As :func:`crop_exact`, with torch's vectorized uint8 resize, which rounds its weights to 16
    bits. No value differs by more than 1 of 255, or 2 for bicubic."""
    region = torch.from_numpy(np.ascontiguousarray(_crop_to_box(image, crop.box)))[None]
    if region.shape[1:3] != crop.size:
        planes = region.permute(0, 3, 1, 2)  # channels_last, as the result will be
        planes = F.interpolate(planes, crop.size, mode=crop.interpolation, antialias=True)
        region = planes.permute(0, 2, 3, 1)
    _write_square(region[0].numpy(), crop, out.numpy())


def crop_float(image: Tensor, crop: CropParams, out: Tensor) -> None:
    """As :func:`crop_exact` for float32 ``image`` [3, H, W] and ``out`` [3, S, S]."""
    if crop.box is not None:
        top, left, height, width = crop.box
        image = image[:, top : top + height, left : left + width]
    mode = InterpolationMode(crop.interpolation)
    image = v2.resize(image, list(crop.size), interpolation=mode, antialias=True)
    _write_square(image.permute(1, 2, 0).numpy(), crop, out.permute(1, 2, 0).numpy())


def _crop_to_box(image: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return image
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def _as_pil_image(region: np.ndarray) -> Image.Image:
    """Convert without the copy that Image.fromarray makes of a non-contiguous region."""
    height, width, _ = region.shape
    row = region.strides[0]
    memory = np.lib.stride_tricks.as_strided(region, ((height - 1) * row + 3 * width,), (1,))
    return Image.frombytes("RGB", (width, height), memory, "raw", "RGB", row, 1)


def _write_square(image: np.ndarray, crop: CropParams, out: np.ndarray) -> None:
    """Copy the square of ``image`` [h, w, 3] that ``crop`` describes into ``out`` [S, S, 3]."""
    (top, left), (down, right), side = crop.corner, crop.translate, out.shape[0]
    square = image[top : top + side, left : left + side]
    if crop.translate == (0, 0):
        out[:] = square
        return
    out[:] = 0
    inside = square[max(down, 0) : side + min(down, 0), max(right, 0) : side + min(right, 0)]
    out[max(-down, 0) : side - max(down, 0), max(-right, 0) : side - max(right, 0)] = inside
