"""The crops of training images: ``augment.crop`` names a function of this file.

Such a function takes the data's config and ``augment.args``; it raises a ValueError that names an
argument out of range. Its steps take the image as it was decoded (PIL in RGB, or a tensor
[3, H, W]) and give one of ``image_size`` x ``image_size`` pixels; they draw from torch's default
generator, which is seeded for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torchvision.transforms import v2

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.errors import ConfigError


@dataclass(frozen=True)
class Crop:
    """``description``: what it does, as the departures from the paper's protocol say it."""

    steps: list[nn.Module]
    description: str


CROPS: dict[str, Callable[..., Crop]] = {}


def registered(crop: Callable[..., Crop]) -> Callable[..., Crop]:
    """Let ``augment.crop`` name the function."""
    CROPS[crop.__name__] = crop
    return crop


@registered
def random_resized(data: DataConfig, scale: Sequence[float], ratio: Sequence[float]) -> Crop:
    """A random rectangle, resized: ``scale`` [2] bounds its share of the image's area, ``ratio``
    [2] its width over its height.
    """
    low, high = _two_numbers("scale", scale)
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale={scale}: expected 0 < low <= high <= 1")
    narrow, wide = _two_numbers("ratio", ratio)
    if not 0 < narrow <= wide:
        raise ValueError(f"ratio={ratio}: expected 0 < narrow <= wide")
    return Crop(
        [v2.RandomResizedCrop(data.image_size, scale=(low, high), ratio=(narrow, wide))],
        f"random resized crop (area {low:g}-{high:g})",
    )


@registered
def pad(data: DataConfig, padding: int) -> Crop:
    """The validation's crop, zero-padded by ``padding`` pixels and cropped back at random."""
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding={padding}: expected a whole number of 0 or more pixels")
    return Crop(
        [*centre(data), v2.RandomCrop(data.image_size, padding=padding)],
        f"crop after zero-padding by {padding}",
    )


@registered
def none(data: DataConfig) -> Crop:
    """The validation's crop: nothing random."""
    return Crop(centre(data), "no crop")


def centre(data: DataConfig) -> list[nn.Module]:
    """Shorter side to ``resize_size``, centre crop of ``image_size``: images of any size come out
    alike.
    """
    return [v2.Resize(data.resize_size), v2.CenterCrop(data.image_size)]


def make_crop(data: DataConfig, augment: AugmentConfig) -> Crop:
    """The crop that ``augment`` names.

    Raises:
        ConfigError: there is no such crop, or ``augment.args`` does not suit it.
    """
    if augment.crop not in CROPS:
        raise ConfigError(f"augment.crop={augment.crop}: expected one of {', '.join(CROPS)}")
    try:
        return CROPS[augment.crop](data, **augment.args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augment.args={augment.args}: {error}") from error


def _two_numbers(name: str, values: Sequence[float]) -> tuple[float, float]:
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise ValueError(f"{name}={values}: expected 2 numbers")
    low, high = (float(value) for value in values)
    return low, high
