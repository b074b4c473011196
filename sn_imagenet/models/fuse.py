"""ReLUs and residual additions done by the normalization layers before them.

In timm's ResNets normalization and ReLU are two modules, with an addition between them at the end
of a block, so the block's forward must change. Its other networks ask for one module of both:
``norm_act.py`` makes it, a mechanism of its own since timm looks it up in a table; these keep their
ReLU apart, as none of the paper's networks is among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from sn_imagenet.norms import MomentNorm2d


def fuse_relus(network: nn.Module) -> list[str]:
    """Let the normalization layers of a timm ResNet do the ReLUs that follow them, in place.

    That is the stem's, those within each BasicBlock and Bottleneck, and the block's last with the
    addition of its shortcut. Module names and state_dict keys stay; a ReLU that a layer has taken
    over becomes an nn.Identity. Results are the same up to rounding. Whatever stands between a
    layer and its ReLU (drop block, attention, drop path), another activation, or a layer with a
    ``forward`` of its own, leaves that ReLU where it is.

    Returns:
        The names of the layers that took a ReLU over, in the network's order.
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
                module.__class__ = block_class  # the same but for its forward
    return [name for name, module in network.named_modules() if module in fused]


def _fuse(module: nn.Module, norm_name: str, act_name: str) -> bool:
    norm, act = getattr(module, norm_name), getattr(module, act_name)
    own = isinstance(norm, MomentNorm2d) and type(norm).forward is MomentNorm2d.forward
    if not own or type(act) is not nn.ReLU:
        return False
    norm.relu = True
    setattr(module, act_name, nn.Identity())
    return True


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a norm and of the activation that alone takes its output."""
    if isinstance(module, nn.Sequential):  # the deep stem
        yield from pairwise(module._modules)
    elif isinstance(module, ResNet) or type(module) is Bottleneck:
        yield "bn1", "act1"
    undropped = isinstance(getattr(module, "drop_block", None), nn.Identity)
    if type(module) is BasicBlock and undropped:
        yield "bn1", "act1"
    if type(module) is Bottleneck and undropped:
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
