"""The augmentations: what is drawn for one image, from its size alone.

Each is a function of (height, width) that draws from torch's global generator, which the caller
seeds by (seed, epoch, sample id), in the order in which torchvision's transforms draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torchvision.transforms import v2

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.cutting import Cut

Draw = Callable[[int, int], Cut]

# The eigenvalues and, in the columns, eigenvectors of the RGB covariance of ImageNet's pixels, in
# units of [0, 1], as published in fb.resnet.torch (datasets/imagenet.lua) and used since.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
# Column j is eigenvector j times eigenvalue j.
_SCALED = torch.tensor(EIGENVECTORS) * torch.tensor(EIGENVALUES)


def centre(data: DataConfig) -> Draw:
    """Validation's: shorter side to ``resize_size``, centre crop of ``image_size``; no draw."""

    def draw(height: int, width: int) -> Cut:
        height, width = _shorter_side(height, width, data.resize_size)
        side = data.image_size
        return Cut(None, (height, width), (round((height - side) / 2), round((width - side) / 2)))

    return draw


def training(data: DataConfig, augment: AugmentConfig) -> Draw:
    """``augment``: crop, then flip, then lighting."""
    crop = {
        "random_resized": _random_resized,
        "pad": _padded,
        "none": lambda data, _: centre(data),
    }[augment.crop](data, augment)

    def draw(height: int, width: int) -> Cut:
        drawn = crop(height, width)
        if augment.flip:
            drawn = replace(drawn, flip=bool(torch.rand(1) < 0.5))
        if augment.lighting_std > 0:
            drawn = replace(drawn, shift=lighting(augment.lighting_std))
        return drawn

    return draw


def lighting(std: float) -> tuple[float, float, float]:
    """AlexNet's colour augmentation (Krizhevsky et al. 2012, Sec. 4.1): ``P (alpha * lambda)``, to
    be added to every pixel. P the eigenvectors and lambda the eigenvalues of the RGB covariance,
    alpha three draws from N(0, std), one set per image."""
    red, green, blue = (_SCALED * (torch.randn(3) * std)).sum(dim=1).tolist()
    return red, green, blue


def _random_resized(data: DataConfig, augment: AugmentConfig) -> Draw:
    """Inception's crop, as in the authors' code: random area and aspect, resized to a square."""
    (low, high), (narrow, wide) = augment.scale, augment.ratio
    transform = v2.RandomResizedCrop(data.image_size, scale=(low, high), ratio=(narrow, wide))
    size = (data.image_size, data.image_size)
    pixel = torch.empty(1, 1, 1)

    def draw(height: int, width: int) -> Cut:
        box = transform.make_params([pixel.expand(3, height, width)])  # asks for the size alone
        return Cut((box["top"], box["left"], box["height"], box["width"]), size)

    return draw


def _padded(data: DataConfig, augment: AugmentConfig) -> Draw:
    """Validation's square, zero-padded and cropped back."""
    square = centre(data)
    padding = augment.padding

    def draw(height: int, width: int) -> Cut:
        move = [
            int(torch.randint(0, 2 * padding + 1, ())) - padding if padding else 0 for _ in range(2)
        ]
        return replace(square(height, width), move=(move[0], move[1]))

    return draw


def _shorter_side(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with the shorter side resized to ``side``, as torchvision's Resize."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side
