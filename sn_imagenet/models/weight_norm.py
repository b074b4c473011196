"""Weight normalization of a network's convolutions (Salimans and Kingma 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from sn_imagenet.errors import ConfigError
from sn_imagenet.norms import WeightNorm2d, norm_layers


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def normalize_weights(network: nn.Module) -> None:
    """Give each convolution the weight g v / |v|, with g and |v| per output channel, in place."""
    for conv in convolutions(network):
        weight_norm(conv)


@torch.no_grad()
def initialize_from_data(network: nn.Module, forward: Callable[[nn.Module], None]) -> bool:
    """The paper's data-dependent initialization: scale each g, and set each bias, so that the
    outputs of the layers after the convolutions have mean 0 and variance 1 per channel over a
    batch. ``forward`` passes this batch through the network. Each layer sees the batch after the
    layers before it were initialized.

    Returns:
        Whether the network has weight normalization; otherwise nothing happens.

    Raises:
        ConfigError: a layer does not follow a convolution.
    """
    layers = [layer for layer in norm_layers(network).values() if isinstance(layer, WeightNorm2d)]
    if not any(map(is_parametrized, convolutions(network))):
        return False
    outputs: dict[int, tuple[Any, Tensor]] = {}  # by id, until a layer gets them

    def remember(conv: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[id(output)] = conv, output

    def standardize(layer: WeightNorm2d, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *residual = inputs
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        scale = torch.where(var > 0, var, 1).rsqrt()
        if id(x) not in outputs:
            raise ConfigError(
                "weight normalization is initialized where a normalization layer follows each "
                "convolution, which is not so here; expected such a network (model=resnet50)"
            )
        conv, _ = outputs.pop(id(x))
        conv.parametrizations.weight.original0.mul_(scale[:, None, None, None])
        if layer.bias is not None and not layer.mean_only_bn:
            layer.bias.copy_(-mean * scale)
            mean = torch.zeros_like(mean)  # the bias subtracts it
        return ((x - mean[:, None, None]) * scale[:, None, None], *residual)

    hooks = [conv.register_forward_hook(remember) for conv in convolutions(network)]
    hooks += [layer.register_forward_pre_hook(standardize) for layer in layers]
    network.eval()
    try:
        forward(network)
    finally:
        for hook in hooks:
            hook.remove()
    return True
