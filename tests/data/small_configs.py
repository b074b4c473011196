"""Data and augmentation configs for tests, with defaults for all options."""

from __future__ import annotations

from typing import Any

from sn_imagenet.config import AugmentConfig, DataConfig


def data_config(source: str, **overrides: Any) -> DataConfig:
    values: dict[str, Any] = {
        "name": "test",
        "image_size": 224,
        "resize_size": 256,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "workers": 0,
        "decode": "exact",
    }
    return DataConfig(source=source, **{**values, **overrides})


def augment_config(
    crop: str, flip: bool = False, lighting: float = 0.0, operations: Any = None, **args: Any
) -> AugmentConfig:
    return AugmentConfig("test", crop, args, flip, lighting, operations or {})


PLAIN = augment_config("none")
