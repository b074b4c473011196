"""Normalization and activation in one module, for timm networks that are built from such pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from timm.layers import create_norm_act, get_act_layer
from torch import nn

from sn_imagenet.norms import MomentNorm2d
from sn_imagenet.norms.conversion import with_activation


@contextmanager
def registered_with_timm(layer: partial[MomentNorm2d]) -> Iterator[None]:
    """Register a norm + activation version of ``layer`` with timm while the context is active.

    RegNet, EfficientNet and other timm networks use such pairs. timm looks them up by class name in
    a private table and rejects classes that are not in it. It accepts any function, but does not
    pass the activation to it. The table is restored at the end, because names such as BatchNorm2d
    also belong to PyTorch or timm.
    """
    layer_class = layer.func
    assert isinstance(layer_class, type)
    pairs: dict[str, Any] = create_norm_act._NORM_TO_NORM_ACT_MAP
    name = layer_class.__name__.lower()
    previous = pairs.get(name)
    pair = _buildable(layer_class)
    pairs[name] = pair
    create_norm_act._NORM_ACT_REQUIRES_ARG.add(pair)
    try:
        yield
    finally:
        create_norm_act._NORM_ACT_REQUIRES_ARG.discard(pair)
        if previous is None:
            del pairs[name]
        else:
            pairs[name] = previous


def _buildable(layer_class: type[MomentNorm2d]) -> type[MomentNorm2d]:
    class NormAct(with_activation(layer_class)):  # type: ignore[misc]
        def __init__(
            self,
            num_features: int,
            *args: Any,
            apply_act: bool = True,
            act_layer: Any = nn.ReLU,
            act_kwargs: dict[str, Any] | None = None,
            inplace: bool = True,
            drop_layer: Any = None,
            **kwargs: Any,
        ) -> None:
            super().__init__(num_features, *args, **kwargs)
            self.drop = drop_layer() if drop_layer is not None else nn.Identity()
            activation = get_act_layer(act_layer) if apply_act else None
            self.act = activation(**(act_kwargs or {})) if activation else nn.Identity()

    NormAct.__name__ = f"{layer_class.__name__}Act"
    return NormAct
