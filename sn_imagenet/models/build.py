"""Networks by timm, with a normalizer as their ``norm_layer``."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from sn_imagenet.config import ModelConfig, NormConfig, ProtocolConfig
from sn_imagenet.errors import ConfigError, closest_name
from sn_imagenet.models.fuse import fuse_relus
from sn_imagenet.models.mini import LAYERS as MINI_LAYERS
from sn_imagenet.models.mini import build_mini
from sn_imagenet.models.norm_act import registered_with_timm
from sn_imagenet.norms import MomentNorm2d, norm_layers


def norm_layer(norm: NormConfig) -> partial[MomentNorm2d]:
    """The layer class of a normalizer with its arguments bound.

    Raises:
        ConfigError: ``norm.target`` names no MomentNorm2d, or ``norm.args`` does not suit it.
    """
    try:
        layer_class = pkgutil.resolve_name(norm.target)
    except Exception as error:
        raise ConfigError(
            f"norm.target={norm.target}: cannot be imported ({error}){_guess(norm.target)}; "
            "expected the dotted path of a layer class, with its folder on PYTHONPATH if it is "
            "your own"
        ) from error
    if not (isinstance(layer_class, type) and issubclass(layer_class, MomentNorm2d)):
        raise ConfigError(
            f"norm.target={norm.target}: expected a subclass of sn_imagenet.norms.MomentNorm2d, "
            "which knows of replicas and calibration"
        )
    try:
        layer_class(32, **norm.args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"norm.args={norm.args}: {error}") from error
    return partial(layer_class, **norm.args)


def _guess(target: str) -> str:
    """The class of its module that was probably meant, where the module itself is there."""
    name, _, wanted = target.rpartition(".")
    module = sys.modules.get(name)
    classes = (
        [key for key, value in vars(module).items() if isinstance(value, type)] if module else []
    )
    found = closest_name(wanted, classes)
    return f", did you mean {name}.{found}?" if found else ""


def build_model(
    model: ModelConfig, norm: NormConfig, protocol: ProtocolConfig, num_classes: int, seed: int
) -> nn.Module:
    """A network for images [N, 3, S, S], initialized by the protocol, a function of ``seed``.

    Convolutions are Kaiming normal (fan out, ReLU); all gamma 1 and beta 0 (paper Sec. 4.1), or
    the last gamma of each residual block 0 with ``protocol.zero_init_last_gamma``.

    Raises:
        ConfigError: the model is unknown, takes no ``norm_layer``, or does not suit the protocol.
    """
    # Made from the seed alone and on the CPU, so that no placement or device changes it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(model, norm, num_classes)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in norm_layers(network).values():
        if module.weight is not None and module.bias is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if protocol.zero_init_last_gamma:
        _zero_last_gammas(network, model.name)
    return network


def build_network(model: ModelConfig, norm: NormConfig, num_classes: int) -> nn.Module:
    """The network of :func:`build_model` as timm initializes it, for weights that are at hand.

    Raises:
        ConfigError: the model is unknown or takes no ``norm_layer``.
    """
    layer = norm_layer(norm)
    with registered_with_timm(layer):
        network = _create(model, layer, num_classes)
    if model.fuse_relu:
        fuse_relus(network)
    return network


def _create(model: ModelConfig, layer: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    try:
        if model.name in MINI_LAYERS:
            return build_mini(model.name, num_classes, layer, **model.args)
        if not timm.is_model(model.name):
            raise ConfigError(
                f"model.name={model.name}: expected {', '.join(MINI_LAYERS)} or a timm model "
                f"(timm.list_models() knows {len(timm.list_models())})"
            )
        network: nn.Module = timm.create_model(
            model.name, num_classes=num_classes, norm_layer=layer, **model.args
        )
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.name={model.name} model.args={model.args}: timm cannot build it with a "
            f"norm_layer ({error}); expected a convolutional network such as resnet50"
        ) from error
    if not norm_layers(network):
        raise ConfigError(
            f"model.name={model.name}: it holds no layer of the normalizer; expected a network "
            "whose normalization layers are made by norm_layer"
        )
    return network


def _zero_last_gammas(network: nn.Module, name: str) -> None:
    blocks: list[Any] = [
        m for m in network.modules() if inspect.ismethod(getattr(m, "zero_init_last", None))
    ]
    if not blocks:
        raise ConfigError(
            f"protocol.zero_init_last_gamma=true: {name} has no residual blocks whose last gamma "
            "timm knows of; use protocol.zero_init_last_gamma=false"
        )
    for block in blocks:
        block.zero_init_last()
