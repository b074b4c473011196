"""Build timm networks with a normalization layer of this project as ``norm_layer``."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import timm
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from sn_imagenet.config import ModelConfig, NormConfig, ProtocolConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models.cell import build_cells
from sn_imagenet.models.fuse import fuse_relus
from sn_imagenet.models.mini import LAYERS as MINI_LAYERS
from sn_imagenet.models.mini import build_mini
from sn_imagenet.models.norm_act import registered_with_timm
from sn_imagenet.models.transform_net import TRANSFORM_NET, TransformNet
from sn_imagenet.models.weight_norm import normalize_weights
from sn_imagenet.norms import MomentNorm2d, norm_layers
from sn_imagenet.norms.methods import METHODS

N = TypeVar("N", bound=nn.Module)


def norm_layer(norm: NormConfig) -> partial[MomentNorm2d]:
    """The normalization layer's class with its arguments bound.

    Raises:
        ConfigError: ``norm.target`` is not a MomentNorm2d, or does not accept ``norm.args``.
    """
    try:
        layer_class = pkgutil.resolve_name(norm.target)
    except Exception as error:
        raise ConfigError(
            f"norm.target={norm.target}: cannot be imported ({error}); expected the dotted "
            "path of a layer class; the folder of your own class must be on PYTHONPATH"
        ) from error
    if not (isinstance(layer_class, type) and issubclass(layer_class, MomentNorm2d)):
        raise ConfigError(
            f"norm.target={norm.target}: expected a subclass of sn_imagenet.norms.MomentNorm2d, "
            "which supports replicas and calibration"
        )
    try:
        trial = layer_class(32, **norm.args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"norm.args={norm.args}: {error}") from error
    if layer_class not in METHODS.values():
        try:
            trial.eval()(torch.zeros(2, 32, 4, 4))
        except ValueError as error:
            raise ConfigError(f"norm.target={norm.target}: {error}") from error
    return partial(layer_class, **norm.args)


def build_model(
    model: ModelConfig, norm: NormConfig, protocol: ProtocolConfig, num_classes: int, seed: int
) -> nn.Module:
    """A network for images [N, 3, S, S], initialized as the protocol says from ``seed``.

    Convolutions are Kaiming normal (fan out, ReLU). All gamma are 1 and all beta 0 (paper
    Sec. 4.1); with ``protocol.zero_init_last_gamma`` the last gamma of each residual block is 0.

    Raises:
        ConfigError: the model is unknown, takes no ``norm_layer``, or does not fit the protocol.
    """
    network = initialized(lambda: build_network(model, norm, num_classes), seed)
    for module in norm_layers(network).values():
        if module.weight is not None and module.bias is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if protocol.zero_init_last_gamma:
        _zero_last_gammas(network, model.name)
    return network


def initialized(build: Callable[[], N], seed: int) -> N:
    """The network that ``build`` builds, its convolutions Kaiming normal (fan out, ReLU).

    It is built on the CPU and from the seed alone, so that the weights do not depend on placement
    or device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight.detach()
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
                if is_parametrized(module):  # then the weight is computed at each access
                    module.weight = weight
    return network


def build_network(model: ModelConfig, norm: NormConfig, num_classes: int) -> nn.Module:
    """The network of :func:`build_model` with timm's initialization, for loading weights.

    Raises:
        ConfigError: the model is unknown or takes no ``norm_layer``.
    """
    layer = norm_layer(norm)
    with registered_with_timm(layer):
        network = _create(model, layer, num_classes)
    layer_class: Any = layer.func
    if model.fuse_relu or layer_class.replaces_relu:
        fuse_relus(network)
    if layer_class.normalizes_weights and not layer.keywords.get("folded"):
        normalize_weights(network)
    return network


def require_complete_method(network: nn.Module, norm: NormConfig) -> None:
    """Require what a method needs of a network besides its layers.

    Raises:
        ConfigError: the network lacks it.
    """
    layers = norm_layers(network).values()
    relus = [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
    if relus and any(layer.replaces_relu for layer in layers):
        raise ConfigError(
            f"norm={norm.name}: its own activation replaces the ReLUs, but {relus[0]} of this "
            "network cannot be replaced; expected a ResNet (model=resnet50, model=resnet14_mini)"
        )
    if any(layer.normalizes_weights for layer in layers) and not any(
        map(is_parametrized, network.modules())
    ):
        raise ConfigError(
            f"norm={norm.name}: normalizes the weights of convolutions, which this task does not "
            "support; expected another method"
        )


def _create(model: ModelConfig, layer: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    try:
        if model.name in MINI_LAYERS:
            return build_mini(model.name, num_classes, layer, **model.args)
        if model.name == "cell":
            return build_cells(num_classes, layer, **model.args)
        if model.name == TRANSFORM_NET:
            return TransformNet(layer, **model.args)
        if not timm.is_model(model.name):
            raise ConfigError(
                f"model.name={model.name}: expected {', '.join(MINI_LAYERS)}, cell or a timm model "
                f"(timm.list_models() knows {len(timm.list_models())})"
            )
        network: nn.Module = timm.create_model(
            model.name, num_classes=num_classes, norm_layer=layer, **model.args
        )
    except (AttributeError, TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.name={model.name} model.args={model.args}: timm cannot build it with a "
            f"norm_layer ({error}); expected a convolutional network such as resnet50"
        ) from error
    if not norm_layers(network):
        raise ConfigError(
            f"model.name={model.name}: it has no layers of this normalization method; expected a "
            "network whose normalization layers are created by norm_layer"
        )
    return network


def _zero_last_gammas(network: nn.Module, name: str) -> None:
    blocks: list[Any] = [
        m for m in network.modules() if inspect.ismethod(getattr(m, "zero_init_last", None))
    ]
    if not blocks:
        raise ConfigError(
            f"protocol.zero_init_last_gamma=true: {name} has no residual blocks for which timm "
            "can do this; use protocol.zero_init_last_gamma=false"
        )
    for block in blocks:
        block.zero_init_last()
