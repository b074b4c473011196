"""The crops of training images: ``augment.crop`` names a function of this file.

Such a function takes the data config and ``augment.args``, and raises a ValueError that names an
argument out of range. Its ``sample_crop`` maps an image's (height, width) to the parameters of an
``image_size`` x ``image_size`` crop. It draws from torch's default generator, which is seeded for
each sample, in the same way as torchvision's transforms of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torchvision.transforms import v2

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.crop_image import CropParams
from sn_imagenet.errors import ConfigError

SampleCrop = Callable[[int, int], CropParams]


@dataclass(frozen=True)
class Crop:
    """``description``: the text that the departures from the paper's protocol show."""

    sample_crop: SampleCrop
    description: str


CROPS: dict[str, Callable[..., Crop]] = {}


def register_crop(crop: Callable[..., Crop]) -> Callable[..., Crop]:
    """Decorator: make the function available as a value of ``augment.crop``."""
    CROPS[crop.__name__] = crop
    return crop


@register_crop
def random_resized(data: DataConfig, scale: Sequence[float], ratio: Sequence[float]) -> Crop:
    """A random rectangle, resized. ``scale`` [2] bounds its share of the image's area, ``ratio``
    [2] bounds width / height.
    """
    low, high = _pair("scale", scale)
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale={scale}: expected 0 < low <= high <= 1")
    narrow, wide = _pair("ratio", ratio)
    if not 0 < narrow <= wide:
        raise ValueError(f"ratio={ratio}: expected 0 < narrow <= wide")
    transform = v2.RandomResizedCrop(data.image_size, scale=(low, high), ratio=(narrow, wide))
    size = (data.image_size, data.image_size)
    pixel = torch.empty(1, 1, 1)

    def sample_crop(height: int, width: int) -> CropParams:
        box = transform.make_params([pixel.expand(3, height, width)])  # reads only the size
        return CropParams((box["top"], box["left"], box["height"], box["width"]), size)

    bounds = f"area {low:g}-{high:g}, aspect {narrow:.3g}-{wide:.3g}"
    return Crop(sample_crop, f"random resized crop ({bounds})")


@register_crop
def shorter_side(data: DataConfig, between: Sequence[float]) -> Crop:
    """He et al. 2016, Sec. 3.4: resize the shorter side to an integer drawn uniformly from
    ``between`` [2], both ends included, then take a random square crop.
    """
    low, high = (int(side) for side in _pair("between", between))
    if [low, high] != list(between) or not data.image_size <= low <= high:
        raise ValueError(
            f"between={between}: expected whole numbers, data.image_size={data.image_size} <= low "
            "<= high"
        )

    def sample_crop(height: int, width: int) -> CropParams:
        side = int(torch.randint(low, high + 1, ()))
        height, width = _resized_size(height, width, side)
        top = int(torch.randint(0, height - data.image_size + 1, ()))
        left = int(torch.randint(0, width - data.image_size + 1, ()))
        return CropParams(None, (height, width), (top, left))

    return Crop(
        sample_crop,
        f"shorter side from [{low}, {high}], {data.image_size} crop",
    )


@register_crop
def pad(data: DataConfig, padding: int) -> Crop:
    """The validation crop, zero-padded by ``padding`` pixels and cropped back at random."""
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding={padding}: expected a whole number of 0 or more pixels")
    square = center_crop(data)

    def sample_crop(height: int, width: int) -> CropParams:
        down, right = (
            int(torch.randint(0, 2 * padding + 1, ())) - padding if padding else 0 for _ in range(2)
        )
        return replace(square(height, width), translate=(down, right))

    return Crop(sample_crop, f"crop after zero-padding by {padding}")


@register_crop
def none(data: DataConfig) -> Crop:
    """The validation crop, without randomness."""
    return Crop(center_crop(data), "no crop")


def center_crop(data: DataConfig) -> SampleCrop:
    """Resize the shorter side to ``resize_size``, then center-crop ``image_size``. Deterministic,
    with the same output size for images of any size.
    """
    interpolation = data.interpolation or "bilinear"
    return partial(_center_crop, data.resize_size, data.image_size, interpolation)


def _center_crop(resize: int, side: int, interpolation: str, height: int, width: int) -> CropParams:
    height, width = _resized_size(height, width, resize)
    corner = round((height - side) / 2), round((width - side) / 2)
    return CropParams(None, (height, width), corner, interpolation=interpolation)


def make_crop(data: DataConfig, augment: AugmentConfig) -> Crop:
    """Build the crop that ``augment`` names.

    Raises:
        ConfigError: the crop is unknown, or ``augment.args`` is invalid for it.
    """
    if augment.crop not in CROPS:
        raise ConfigError(f"augment.crop={augment.crop}: expected one of {', '.join(CROPS)}")
    try:
        return CROPS[augment.crop](data, **augment.args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augment.args={augment.args}: {error}") from error


def _pair(name: str, values: Sequence[float]) -> tuple[float, float]:
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise ValueError(f"{name}={values}: expected 2 numbers")
    low, high = (float(value) for value in values)
    return low, high


def _resized_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) after resizing the shorter side, rounded as in torchvision's Resize."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter
