"""From a decoded image to what the network sees; torchvision's transforms, and PCA lighting.

The input is a PIL image in RGB or a tensor ``[3, H, W]`` (uint8, or float32 in [0, 1]); the output
is float32 ``[3, image_size, image_size]``, normalised by ``data.mean`` and ``data.std``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.crops import centre, make_crop

# The eigenvalues and, in the columns, eigenvectors of the RGB covariance of ImageNet's pixels, in
# units of [0, 1], as published in fb.resnet.torch (datasets/imagenet.lua) and used since.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


class Lighting(nn.Module):
    """AlexNet's colour augmentation (Krizhevsky et al. 2012, Sec. 4.1) on float ``[3, H, W]``.

    Adds ``P (alpha * lambda)`` to every pixel: P the eigenvectors and lambda the eigenvalues of the
    RGB covariance, alpha three draws from N(0, std), one set per image.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std
        # Column j is eigenvector j times eigenvalue j.
        self.scaled = torch.tensor(EIGENVECTORS) * torch.tensor(EIGENVALUES)

    def forward(self, image: Tensor) -> Tensor:
        alpha = torch.randn(3) * self.std
        return image + (self.scaled * alpha).sum(dim=1)[:, None, None]


def validation_transform(data: DataConfig) -> v2.Compose:
    """Shorter side to ``resize_size``, centre crop of ``image_size``, normalise."""
    return v2.Compose([*centre(data), *_to_tensor(), _normalise(data)])


def training_transform(data: DataConfig, augment: AugmentConfig) -> v2.Compose:
    """Crop, flip, lighting, normalise.

    Raises:
        ConfigError: there is no such crop, or ``augment.args`` does not suit it.
    """
    steps = [*make_crop(data, augment).steps]
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    steps.extend(_to_tensor())
    if augment.lighting_std > 0:
        steps.append(Lighting(augment.lighting_std))
    return v2.Compose([*steps, _normalise(data)])


def describe_augmentation(data: DataConfig, augment: AugmentConfig) -> str:
    """What :func:`training_transform` does, in a line, with its errors."""
    flip = "flip" if augment.flip else "no flip"
    lighting = f", PCA lighting std {augment.lighting_std:g}" if augment.lighting_std else ""
    return f"{make_crop(data, augment).description}, {flip}{lighting}"


def _to_tensor() -> list[nn.Module]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]


def _normalise(data: DataConfig) -> nn.Module:
    return v2.Normalize(list(data.mean), list(data.std))
