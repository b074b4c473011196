"""ResNets for small images, made with timm's own ResNet class.

The layout of ResNet-50 (bottlenecks with the stride on the 3x3 convolution) with a 3x3 stem of
stride 1, no max-pool and an eighth of the width, so that 16 x 16 pixels end in a 2 x 2 map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models.resnet import Bottleneck, ResNet
from torch import nn

LAYERS = {
    "resnet50_mini": (3, 4, 6, 3),  # 53 normalization layers
    "resnet26_mini": (2, 2, 2, 2),  # 29
    "resnet14_mini": (1, 1, 1, 1),  # 17
}
CHANNELS = (8, 16, 32, 64)  # ResNet-50's (64, 128, 256, 512) / 8
STEM_CHANNELS = 16


def build_mini(
    name: str, num_classes: int, norm_layer: Callable[..., nn.Module], **kwargs: Any
) -> nn.Module:
    """A mini ResNet for images [N, 3, S, S], S a multiple of 8."""
    network: Any = ResNet(
        Bottleneck,  # type: ignore[arg-type]  # timm annotates instances where it wants classes
        LAYERS[name],
        num_classes=num_classes,
        channels=CHANNELS,
        norm_layer=norm_layer,
        **kwargs,
    )
    # timm's plain stem is 7x7 of stride 2 with 64 channels; the first block reads from it.
    network.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, padding=1, bias=False)
    network.bn1 = norm_layer(STEM_CHANNELS)
    network.maxpool = nn.Identity()
    block = network.layer1[0]
    block.conv1 = _with_stem_channels(block.conv1)
    block.downsample[0] = _with_stem_channels(block.downsample[0])
    narrowed: nn.Module = network
    return narrowed


def _with_stem_channels(conv: Any) -> nn.Conv2d:
    return nn.Conv2d(STEM_CHANNELS, conv.out_channels, conv.kernel_size, conv.stride, bias=False)
