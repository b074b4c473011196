"""Fuse ReLUs and residual additions into the preceding normalization layers.

In timm's ResNets normalization and ReLU are two modules, with an addition between them at the end
of a block. Fusing the addition therefore replaces the block's forward. timm's other networks use
one module for normalization and activation, which ``norm_act.py`` creates. Their ReLUs are not
fused, since the paper uses none of these networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from sn_imagenet.norms import MomentNorm2d


def fuse_relus(network: nn.Module) -> list[str]:
    """Fuse the ReLUs of a timm ResNet into the normalization layers before them, in place.

    This covers the ReLU of the stem, those within each BasicBlock and Bottleneck, and the last ReLU
    of a block together with the residual addition. Module names and state_dict keys do not change;
    a fused ReLU becomes an nn.Identity. Results are the same up to rounding. A ReLU is not fused if
    another module is between it and the layer (drop block, attention, drop path) or the layer has
    its own ``forward``. Other activations are not fused.

    Returns:
        The names of the layers with a fused ReLU, in network order.
    """
    fused = set()
    for module in list(network.modules()):
        for norm, act in _pairs(module):
            if _fuse(module, norm, act):
                fused.add(getattr(module, norm))
        if type(module) in _RESIDUAL_BLOCKS and module.se is None and module.drop_path is None:
            norm, act, block_class = _RESIDUAL_BLOCKS[type(module)]
            if _fuse(module, norm, act):
                fused.add(getattr(module, norm))
                module.__class__ = block_class  # differs only in its forward
    return [name for name, module in network.named_modules() if module in fused]


def _fuse(module: nn.Module, norm_name: str, act_name: str) -> bool:
    norm, act = getattr(module, norm_name), getattr(module, act_name)
    can_fuse = isinstance(norm, MomentNorm2d) and type(norm).forward is MomentNorm2d.forward
    if not can_fuse or type(act) is not nn.ReLU:
        return False
    norm.relu = True
    setattr(module, act_name, nn.Identity())
    return True


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of normalization layers and of the activations that alone use their output."""
    if isinstance(module, nn.Sequential):  # the deep stem
        yield from pairwise(module._modules)
    elif isinstance(module, ResNet) or type(module) is Bottleneck:
        yield "bn1", "act1"
    no_drop_block = isinstance(getattr(module, "drop_block", None), nn.Identity)
    if type(module) is BasicBlock and no_drop_block:
        yield "bn1", "act1"
    if type(module) is Bottleneck and no_drop_block:
        yield "bn2", "act2"


class _ResidualBasicBlock(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))  # type: ignore[misc]
        x = self.conv2(x)
        if isinstance(self.downsample, nn.Module):
            shortcut = self.downsample(shortcut)
        y: Tensor = self.act2(self.bn2(x, shortcut))
        return y


class _ResidualBottleneck(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))  # type: ignore[misc]
        x = self.conv3(x)
        if isinstance(self.downsample, nn.Module):
            shortcut = self.downsample(shortcut)
        y: Tensor = self.act3(self.bn3(x, shortcut))
        return y


_RESIDUAL_BLOCKS = {
    BasicBlock: ("bn2", "act2", _ResidualBasicBlock),
    Bottleneck: ("bn3", "act3", _ResidualBottleneck),
}
