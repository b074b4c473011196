"""timm networks with a chosen normalization layer."""

from sn_imagenet.models.build import build_model, initialized, norm_layer
from sn_imagenet.models.fuse import fuse_relus
from sn_imagenet.models.positions import LayerPosition, layer_positions
from sn_imagenet.models.saved import load, start_from

__all__ = [
    "LayerPosition",
    "build_model",
    "fuse_relus",
    "initialized",
    "layer_positions",
    "load",
    "norm_layer",
    "start_from",
]
