"""Augmentation: ``augment.crop`` names a crop of this file, ``augment.operations`` what follows it.

Each is a function of the data config and its own arguments, which raises a ValueError that names
an argument out of range. It returns a function that draws, and the text that the departures from
the paper's protocol show. What a crop draws are :class:`CropParams`, from the image's (height,
width); what an operation draws is a function from :class:`Square` to Square. Everything is drawn
before the image is decoded, from torch's default generator, which is seeded for each
(seed, epoch, sample id), in the same way as by torchvision's transforms of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.crop import CropParams
from sn_imagenet.errors import ConfigError

# Eigenvalues and eigenvectors (in columns) of the RGB covariance of ImageNet's pixels, in units of
# [0, 1], as published in fb.resnet.torch (datasets/imagenet.lua).
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
# Column j is eigenvector j times eigenvalue j.
_SCALED = torch.tensor(EIGENVECTORS) * torch.tensor(EIGENVALUES)


class Square(NamedTuple):
    """A cropped image. ``image``: uint8, or float32 in [0, 1], [3, S, S]. ``shift``: added to the
    three channels once they are scaled to [0, 1]."""

    image: Tensor
    shift: tuple[float, ...] = (0.0, 0.0, 0.0)


Apply = Callable[[Square], Square]
Crop = tuple[Callable[[int, int], CropParams], str]
Operation = tuple[Callable[[], Apply], str]
CROPS: dict[str, Callable[..., Crop]] = {}
OPERATIONS: dict[str, Callable[..., Operation]] = {}


def crop(function: Callable[..., Crop]) -> Callable[..., Crop]:
    """Decorator: make the function available as a value of ``augment.crop``."""
    CROPS[function.__name__] = function
    return function


def operation(function: Callable[..., Operation]) -> Callable[..., Operation]:
    """Decorator: make the function available as a key of ``augment.operations``."""
    OPERATIONS[function.__name__] = function
    return function


class Augmentation:
    """The augmentation of ``augment``, or without it the validation transform (Resize, CenterCrop).
    ``augmentation(height, width)`` draws the crop of an image, and what is applied to the square,
    in this order.

    Pickles as its configs, for loader workers that are not forked.

    Raises:
        ConfigError: a crop or operation is unknown, or its arguments are invalid.
    """

    def __init__(self, data: DataConfig, augment: AugmentConfig | None = None) -> None:
        self._configs = data, augment
        augment = augment or AugmentConfig("none", "none", {}, flip=False, lighting_std=0)
        operations: dict[str, Any] = {"flip": {}} if augment.flip else {}
        if augment.lighting_std:
            operations["lighting"] = {"std": augment.lighting_std}
        operations |= augment.operations
        self.sample_crop, *texts = _build(CROPS, data, "crop", augment.crop, "args", augment.args)
        texts += [] if "flip" in operations else ["no flip"]
        self.operations = []
        for name, args in operations.items():
            draw, text = _build(OPERATIONS, data, "operations", name, f"operations.{name}", args)
            self.operations.append(draw)
            texts.append(text)
        self.description = ", ".join(texts)

    def __reduce__(self) -> tuple[type, tuple[DataConfig, AugmentConfig | None]]:
        return Augmentation, self._configs

    def __call__(self, height: int, width: int) -> tuple[CropParams, list[Apply]]:
        return self.sample_crop(height, width), [draw() for draw in self.operations]


def _build(
    known: dict[str, Callable[..., Any]],
    data: DataConfig,
    key: str,
    name: str,
    args_key: str,
    args: dict[str, Any],
) -> Any:
    if name not in known:
        raise ConfigError(f"augment.{key}={name}: expected one of {', '.join(known)}")
    try:
        return known[name](data, **args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augment.{args_key}={args}: {error}") from error


@crop
def random_resized(data: DataConfig, scale: Sequence[float], ratio: Sequence[float]) -> Crop:
    """A random rectangle, resized. ``scale`` [2] bounds its share of the image's area, ``ratio``
    [2] bounds width / height.
    """
    (low, high), (narrow, wide) = _scale_and_ratio(scale, ratio)
    transform = v2.RandomResizedCrop(data.image_size, scale=(low, high), ratio=(narrow, wide))
    size = (data.image_size, data.image_size)
    pixel = torch.empty(1, 1, 1)

    def sample_crop(height: int, width: int) -> CropParams:
        box = transform.make_params([pixel.expand(3, height, width)])  # reads only the size
        return CropParams((box["top"], box["left"], box["height"], box["width"]), size)

    bounds = f"area {low:g}-{high:g}, aspect {narrow:.3g}-{wide:.3g}"
    return sample_crop, f"random resized crop ({bounds})"


@crop
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

    return sample_crop, f"shorter side from [{low}, {high}], {data.image_size} crop"


@crop
def pad(data: DataConfig, padding: int) -> Crop:
    """The validation crop, zero-padded by ``padding`` pixels and cropped back at random."""
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding={padding}: expected a whole number of 0 or more pixels")
    square, _ = none(data)

    def sample_crop(height: int, width: int) -> CropParams:
        down, right = (
            int(torch.randint(0, 2 * padding + 1, ())) - padding if padding else 0 for _ in range(2)
        )
        return replace(square(height, width), translate=(down, right))

    return sample_crop, f"crop after zero-padding by {padding}"


@crop
def none(data: DataConfig) -> Crop:
    """The validation crop, without randomness: resize the shorter side to ``resize_size``, then
    center-crop ``image_size``."""

    def sample_crop(height: int, width: int) -> CropParams:
        height, width = _resized_size(height, width, data.resize_size)
        side = data.image_size
        corner = round((height - side) / 2), round((width - side) / 2)
        interpolation = data.interpolation or "bilinear"
        return CropParams(None, (height, width), corner, interpolation=interpolation)

    return sample_crop, "no crop"


@operation
def flip(data: DataConfig) -> Operation:
    """Mirror the image from left to right with probability 0.5."""

    def draw() -> Apply:
        return _on_image(lambda image: image.flip(2)) if torch.rand(1).item() < 0.5 else _unchanged

    return draw, "flip"


@operation
def lighting(data: DataConfig, std: float) -> Operation:
    """AlexNet's color augmentation (Krizhevsky et al. 2012, Sec. 4.1): ``P (alpha * lambda)``,
    added to every pixel. P are the eigenvectors and lambda the eigenvalues of the RGB covariance;
    alpha are three draws from N(0, std) per image.
    """

    def draw() -> Apply:
        shift = tuple((_SCALED * (torch.randn(3) * std)).sum(dim=1).tolist())
        return lambda square: square._replace(shift=shift)

    return draw, f"PCA lighting std {std:g}"


@operation
def color_jitter(
    data: DataConfig,
    brightness: float = 0,
    contrast: float = 0,
    saturation: float = 0,
    hue: float = 0,
) -> Operation:
    """torchvision's ColorJitter: factors from [1 - x, 1 + x] and a hue shift from [-hue, hue], in
    random order."""
    jitter = v2.ColorJitter(brightness, contrast, saturation, hue)
    amounts = f"{brightness:g}, {contrast:g}, {saturation:g}, {hue:g}"

    def draw() -> Apply:
        return _on_image(partial(jitter.transform, params=jitter.make_params([])))

    return draw, f"color jitter ({amounts})"


@operation
def random_erasing(
    data: DataConfig, p: float, scale: Sequence[float], ratio: Sequence[float]
) -> Operation:
    """Zhong et al. 2020: with probability ``p``, fill a rectangle with the data set's mean color.
    ``scale`` [2] bounds its share of the image's area, ``ratio`` [2] its height / width."""
    erasing = v2.RandomErasing(p, *_scale_and_ratio(scale, ratio), value=data.mean)
    pixel = torch.empty(3, 1, 1).expand(3, data.image_size, data.image_size)

    def draw() -> Apply:
        if torch.rand(1) >= p:
            return _unchanged
        params = erasing.make_params([pixel])  # reads only the size

        def erase(image: Tensor) -> Tensor:
            largest = 255 if image.dtype == torch.uint8 else 1
            return erasing.transform(image, {**params, "v": params["v"] * largest})

        return _on_image(erase)

    return draw, f"random erasing p {p:g}"


def _unchanged(square: Square) -> Square:
    return square


def _on_image(function: Callable[[Tensor], Tensor]) -> Apply:
    return lambda square: square._replace(image=function(square.image))


def _scale_and_ratio(
    scale: Sequence[float], ratio: Sequence[float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    low, high = _pair("scale", scale)
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale={scale}: expected 0 < low <= high <= 1")
    narrow, wide = _pair("ratio", ratio)
    if not 0 < narrow <= wide:
        raise ValueError(f"ratio={ratio}: expected 0 < narrow <= wide")
    return (low, high), (narrow, wide)


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
