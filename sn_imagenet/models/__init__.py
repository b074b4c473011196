"""timm networks with a chosen normalization layer."""

from sn_imagenet.models.build import build_model, initialized, norm_layer, require_complete_method
from sn_imagenet.models.fuse import fuse_relus
from sn_imagenet.models.positions import LayerPosition, layer_positions
from sn_imagenet.models.saved import SavedWeights, classifier_of, load, load_weights, read_weights
from sn_imagenet.models.weight_norm import initialize_from_data

__all__ = [
    "LayerPosition",
    "SavedWeights",
    "build_model",
    "classifier_of",
    "fuse_relus",
    "initialize_from_data",
    "initialized",
    "layer_positions",
    "load",
    "load_weights",
    "norm_layer",
    "read_weights",
    "require_complete_method",
]
