"""Network and preprocessing of weights that torchvision and timm publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torchvision
from timm.data import resolve_data_config
from torch import Tensor

from sn_imagenet.errors import UserError, closest_name


@dataclass(frozen=True)
class PublishedWeights:
    """Published weights. ``model``: timm's name of the network. ``image_size``, ``resize_size``
    (pixels), ``interpolation``, ``mean``, ``std``: of the evaluation. ``url``: of the file.
    """

    model: str
    image_size: int
    resize_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    url: str


def find_published(name: str) -> PublishedWeights:
    """Look up weights by the name in torchvision (such as ``ResNet50_Weights.IMAGENET1K_V1``) or
    timm (such as ``resnet50.a1_in1k``). Nothing is downloaded.

    Raises:
        UserError: there are no weights of that name.
    """
    return _find_in_torchvision(name) if "_Weights." in name else _find_in_timm(name)


def published_url(name: str) -> str:
    """Where the file of the weights ``name`` is; detectors of torchvision have one too."""
    return str((_torchvision_weights(name) if "_Weights." in name else _find_in_timm(name)).url)


def _torchvision_weights(name: str) -> Any:
    try:
        return torchvision.models.get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"torchvision has no weights {name}: expected a name such as "
            "ResNet50_Weights.IMAGENET1K_V2"
        ) from error


def _find_in_torchvision(name: str) -> PublishedWeights:
    weights = _torchvision_weights(name)
    preset = weights.transforms()
    architecture = name.partition("_Weights")[0].lower()
    return PublishedWeights(
        model=architecture,
        image_size=preset.crop_size[0],
        resize_size=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        url=weights.url,
    )


def _find_in_timm(name: str) -> PublishedWeights:
    names = timm.list_models(pretrained=True)
    if name not in names:
        match = closest_name(name, names)
        hint = f"did you mean {match}?" if match else "expected a name such as resnet50.a1_in1k"
        raise UserError(f"there are no weights {name}: {hint}")
    pretrained = timm.get_pretrained_cfg(name)
    assert pretrained is not None
    config = resolve_data_config(pretrained_cfg=pretrained.to_dict(), use_test_size=True)
    image_size = config["input_size"][-1]
    return PublishedWeights(
        model=name.partition(".")[0].removesuffix("_gn"),
        image_size=image_size,
        resize_size=int(image_size / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        url=str(pretrained.url or f"https://huggingface.co/{pretrained.hf_hub_id}{name}"),
    )


def detect_norm(weights: Mapping[str, Tensor]) -> str:
    """``bn`` if the weights hold running statistics, else ``gn``."""
    return "bn" if any(name.endswith("running_mean") for name in weights) else "gn"
