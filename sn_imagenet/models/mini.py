"""ResNets for small images, built with timm's ResNet class.

They have the layout of ResNet-50 (bottlenecks with the stride on the 3x3 convolution), but a 3x3
stem of stride 1, no max-pool and 1/8 of the width. 16 x 16 pixels end in a 2 x 2 map.
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
    """A mini ResNet for images [N, 3, S, S], where S is a multiple of 8."""
    network: Any = ResNet(
        Bottleneck,  # type: ignore[arg-type]  # timm annotates an instance but takes a class
        LAYERS[name],
        num_classes=num_classes,
        channels=CHANNELS,
        norm_layer=norm_layer,
        **kwargs,
    )
    # Replace timm's stem (7x7, stride 2, 64 channels), and the convolutions that read from it.
    network.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, padding=1, bias=False)
    network.bn1 = norm_layer(STEM_CHANNELS)
    network.maxpool = nn.Identity()
    block = network.layer1[0]
    block.conv1 = _with_stem_channels(block.conv1)
    block.downsample[0] = _with_stem_channels(block.downsample[0])
    mini: nn.Module = network
    return mini


def _with_stem_channels(conv: Any) -> nn.Conv2d:
    return nn.Conv2d(STEM_CHANNELS, conv.out_channels, conv.kernel_size, conv.stride, bias=False)
