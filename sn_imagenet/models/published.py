"""Network and preprocessing of weights that torchvision and timm publish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torchvision
from timm.data import resolve_data_config
from torch import Tensor

from sn_imagenet.errors import UserError, closest_name


class PublishedWeights(NamedTuple):
    """Published weights. ``model``: timm's name of the network. ``preprocessing``: values of
    :class:`DataConfig` for the evaluation. ``url``: of the file.
    """

    model: str
    preprocessing: dict[str, Any]
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
    preprocessing = {
        "image_size": preset.crop_size[0],
        "resize_size": preset.resize_size[0],
        "interpolation": preset.interpolation.value,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
    }
    return PublishedWeights(name.partition("_Weights")[0].lower(), preprocessing, weights.url)


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
    preprocessing = {key: config[key] for key in ("interpolation", "mean", "std")}
    preprocessing |= {"image_size": image_size, "resize_size": int(image_size / config["crop_pct"])}
    url = str(pretrained.url or f"https://huggingface.co/{pretrained.hf_hub_id}{name}")
    return PublishedWeights(name.partition(".")[0].removesuffix("_gn"), preprocessing, url)


def detect_norm(weights: Mapping[str, Tensor]) -> str:
    """``bn`` if the weights hold running statistics, else ``gn``."""
    return "bn" if any(name.endswith("running_mean") for name in weights) else "gn"
