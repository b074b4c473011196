"""Training and validation transforms: sample an image's parameters from its size alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data.crop_image import CropParams
from sn_imagenet.data.crops import SampleCrop, center_crop, make_crop

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


def validation_crop(data: DataConfig) -> SampleCrop:
    """Resize the shorter side to ``resize_size``, then center-crop ``image_size``."""
    return center_crop(data)


def training_crop(data: DataConfig, augment: AugmentConfig) -> SampleCrop:
    """Crop, then flip, then lighting.

    Raises:
        ConfigError: the crop is unknown, or ``augment.args`` is invalid for it.
    """
    return _TrainingCrop(data, augment)


class _TrainingCrop:
    """Pickles as its configs, for loader workers that are not forked."""

    def __init__(self, data: DataConfig, augment: AugmentConfig) -> None:
        self._data, self._augment = data, augment
        self._crop = make_crop(data, augment).sample_crop

    def __reduce__(self) -> tuple[type, tuple[DataConfig, AugmentConfig]]:
        return _TrainingCrop, (self._data, self._augment)

    def __call__(self, height: int, width: int) -> CropParams:
        crop = self._crop(height, width)
        flip = self._augment.flip and torch.rand(1).item() < 0.5
        std = self._augment.lighting_std
        return replace(crop, flip=flip, shift=lighting(std) if std > 0 else None)


def lighting(std: float) -> tuple[float, float, float]:
    """AlexNet's color augmentation (Krizhevsky et al. 2012, Sec. 4.1): ``P (alpha * lambda)``,
    added to every pixel. P are the eigenvectors and lambda the eigenvalues of the RGB covariance;
    alpha are three draws from N(0, std) per image.
    """
    red, green, blue = (_SCALED * (torch.randn(3) * std)).sum(dim=1).tolist()
    return red, green, blue


def describe_augmentation(data: DataConfig, augment: AugmentConfig) -> str:
    """One-line description of :func:`training_crop`, with the same errors."""
    flip = "flip" if augment.flip else "no flip"
    lighting_text = f", PCA lighting std {augment.lighting_std:g}" if augment.lighting_std else ""
    return f"{make_crop(data, augment).description}, {flip}{lighting_text}"
