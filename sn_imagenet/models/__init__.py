"""timm networks with a normaliser."""

from sn_imagenet.models.build import build_model, norm_layer
from sn_imagenet.models.dropout import PlacedDropout
from sn_imagenet.models.fuse import fuse_relus
from sn_imagenet.models.places import Place, places
from sn_imagenet.models.saved import load, start_from

__all__ = [
    "Place",
    "PlacedDropout",
    "build_model",
    "fuse_relus",
    "load",
    "norm_layer",
    "places",
    "start_from",
]
