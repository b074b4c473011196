"""Weights that torchvision and timm publish: which network and preprocessing they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import timm
import torchvision
from timm.data import resolve_data_config
from torch import Tensor

from sn_imagenet.errors import UserError, closest_name


@dataclass(frozen=True)
class Published:
    """``model``: timm's name of the network. ``image_size``, ``resize_size`` in pixels and
    ``interpolation`` of the evaluation; ``url`` of the file.
    """

    model: str
    image_size: int
    resize_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    url: str


def published(name: str) -> Published:
    """What is known of the weights ``name``: torchvision's, as ``ResNet50_Weights.IMAGENET1K_V1``,
    or timm's, as ``resnet50.a1_in1k``. Nothing is downloaded.

    Raises:
        UserError: there are none of that name, or they are not for images of three channels.
    """
    return _of_torchvision(name) if "_Weights." in name else _of_timm(name)


def _of_torchvision(name: str) -> Published:
    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"torchvision has no weights {name}: expected a name such as "
            "ResNet50_Weights.IMAGENET1K_V2"
        ) from error
    preset = weights.transforms()
    architecture = name.partition("_Weights")[0].lower()
    return Published(
        model=architecture,
        image_size=preset.crop_size[0],
        resize_size=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        url=weights.url,
    )


def _of_timm(name: str) -> Published:
    names = timm.list_models(pretrained=True)
    if name not in names:
        found = closest_name(name, names)
        raise UserError(
            f"there are no weights {name}: "
            + (f"did you mean {found}?" if found else "expected a name such as resnet50.a1_in1k")
        )
    known = timm.get_pretrained_cfg(name)
    assert known is not None
    config = resolve_data_config(pretrained_cfg=known.to_dict(), use_test_size=True)
    image_size = config["input_size"][-1]
    return Published(
        model=name.partition(".")[0].removesuffix("_gn"),
        image_size=image_size,
        resize_size=int(image_size / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        url=str(known.url or f"https://huggingface.co/{known.hf_hub_id}{name}"),
    )


def method_of(weights: Mapping[str, Tensor]) -> str:
    """``bn`` where the weights hold running statistics, else ``gn``."""
    return "bn" if any(name.endswith("running_mean") for name in weights) else "gn"
