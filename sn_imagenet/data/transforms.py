"""Training's and validation's transformation: what is drawn for one image, from its size alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.crop_image import CropParams
from sn_imagenet.data.crops import SampleCrop, center_crop, make_crop

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


def validation_crop(data: DataConfig) -> SampleCrop:
    """Shorter side to ``resize_size``, center crop of ``image_size``; nothing is drawn."""
    return center_crop(data)


def training_crop(data: DataConfig, augment: AugmentConfig) -> SampleCrop:
    """Crop, then flip, then lighting.

    Raises:
        ConfigError: there is no such crop, or ``augment.args`` does not suit it.
    """
    return _TrainingCrop(data, augment)


class _TrainingCrop:
    """Goes to a loader's worker as its configs, wherever workers are not forked."""

    def __init__(self, data: DataConfig, augment: AugmentConfig) -> None:
        self._data, self._augment = data, augment
        self._crop = make_crop(data, augment).sample_crop

    def __reduce__(self) -> tuple[type, tuple[DataConfig, AugmentConfig]]:
        return _TrainingCrop, (self._data, self._augment)

    def __call__(self, height: int, width: int) -> CropParams:
        cut = self._crop(height, width)
        flip = self._augment.flip and torch.rand(1).item() < 0.5
        std = self._augment.lighting_std
        return replace(cut, flip=flip, shift=lighting(std) if std > 0 else None)


def lighting(std: float) -> tuple[float, float, float]:
    """AlexNet's color augmentation (Krizhevsky et al. 2012, Sec. 4.1): ``P (alpha * lambda)``,
    which is added to every pixel. P the eigenvectors and lambda the eigenvalues of the RGB
    covariance, alpha three draws from N(0, std), one set per image.
    """
    red, green, blue = (_SCALED * (torch.randn(3) * std)).sum(dim=1).tolist()
    return red, green, blue


def describe_augmentation(data: DataConfig, augment: AugmentConfig) -> str:
    """What :func:`training_crop` does, in a line, with its errors."""
    flip = "flip" if augment.flip else "no flip"
    lit = f", PCA lighting std {augment.lighting_std:g}" if augment.lighting_std else ""
    return f"{make_crop(data, augment).description}, {flip}{lit}"
