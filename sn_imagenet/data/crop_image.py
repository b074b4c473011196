"""From a decoded image to the square that the network sees, by parameters sampled beforehand.

An augmentation samples :class:`CropParams` from an image's size alone. Pixels are cropped and
resized where the image was decoded and stay as they are stored, uint8 or float. The flip and the
color shift travel beside them and are applied to the whole batch on the device (pixels.py).
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
    """How one image becomes a square of side S: cut, resize, cut again, move.

    ``box``: (top, left, height, width) cut from the stored image; None for all of it.
    ``size``: (height, width) to which that is resized.
    ``corner``: (top, left) of the square in what was resized.
    ``move``: by how many pixels the square's window moves (down, right); what comes in is 0.
    ``flip``: whether the square is mirrored from left to right.
    ``interpolation``: of the resize, bilinear or bicubic.
    ``shift``: what is added to its three channels, in units of [0, 1], if anything is.
    """

    box: Box | None
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    move: tuple[int, int] = (0, 0)
    flip: bool = False
    shift: tuple[float, float, float] | None = None
    interpolation: str = "bilinear"

    @property
    def bottom(self) -> int | None:
        """How many rows of the stored image, from its top, are looked at; None: all."""
        return None if self.box is None else self.box[0] + self.box[2]


def crop_exact(image: np.ndarray, crop: CropParams, out: Tensor) -> None:
    """Write to ``out`` (uint8 [S, S, 3]) what Pillow's crop and resize make of ``image``
    (uint8 [H, W, 3]): the pixels of torchvision's transforms of a PIL image, to the last bit."""
    part = _boxed(image, crop.box)
    if part.shape[:2] != crop.size:
        height, width = crop.size
        how = Image.Resampling[crop.interpolation.upper()]
        part = np.asarray(_pillow(part).resize((width, height), how))
    _place(part, crop, out.numpy())


def crop_fast(image: np.ndarray, crop: CropParams, out: Tensor) -> None:
    """As :func:`crop_exact`, resized by torch's vectorized uint8 kernel, whose weights are rounded
    to 16 bits: no value differs by more than 1 of 255, or 2 where it is bicubic."""
    part = torch.from_numpy(np.ascontiguousarray(_boxed(image, crop.box)))[None]
    if part.shape[1:3] != crop.size:
        planes = part.permute(0, 3, 1, 2)  # channels_last, and so is what comes of it
        planes = F.interpolate(planes, crop.size, mode=crop.interpolation, antialias=True)
        part = planes.permute(0, 2, 3, 1)
    _place(part[0].numpy(), crop, out.numpy())


def crop_float(image: Tensor, crop: CropParams, out: Tensor) -> None:
    """As :func:`crop_exact` for float32 ``image`` [3, H, W] and ``out`` [3, S, S]."""
    if crop.box is not None:
        top, left, height, width = crop.box
        image = image[:, top : top + height, left : left + width]
    how = InterpolationMode(crop.interpolation)
    image = v2.resize(image, list(crop.size), interpolation=how, antialias=True)
    _place(image.permute(1, 2, 0).numpy(), crop, out.permute(1, 2, 0).numpy())


def _boxed(image: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return image
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def _pillow(part: np.ndarray) -> Image.Image:
    """Row by row out of the whole, where Image.fromarray would first copy the part."""
    height, width, _ = part.shape
    row = part.strides[0]
    seen = np.lib.stride_tricks.as_strided(part, ((height - 1) * row + 3 * width,), (1,))
    return Image.frombytes("RGB", (width, height), seen, "raw", "RGB", row, 1)


def _place(image: np.ndarray, crop: CropParams, out: np.ndarray) -> None:
    """The square of ``image`` [h, w, 3] that ``crop`` says, into ``out`` [S, S, 3]."""
    (top, left), (down, right), side = crop.corner, crop.move, out.shape[0]
    square = image[top : top + side, left : left + side]
    if crop.move == (0, 0):
        out[:] = square
        return
    out[:] = 0
    seen = square[max(down, 0) : side + min(down, 0), max(right, 0) : side + min(right, 0)]
    out[max(-down, 0) : side - max(down, 0), max(-right, 0) : side - max(right, 0)] = seen
