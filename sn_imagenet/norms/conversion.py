"""Existing networks: other normalizers in place of batch norm, and batch norm folded away."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sn_imagenet.norms.batch_variants import BatchRenorm2d, FrozenBatchNorm2d, SyncBatchNorm2d
from sn_imagenet.norms.layers import BatchNorm2d
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

_OTHER_DIMENSIONS: dict[type[nn.Module], type[MomentNorm2d]] = {
    nn.BatchNorm1d: SwitchNorm1d,
    nn.BatchNorm3d: SwitchNorm3d,
}
_OF_PYTORCH = (nn.BatchNorm2d, nn.SyncBatchNorm)
_FOR_MAPS = (*_OF_PYTORCH, BatchNorm2d, SyncBatchNorm2d)


def convert_norm(
    network: nn.Module, method: str | type[MomentNorm2d], **arguments: Any
) -> list[str]:
    """Replace every batch norm inside ``network``, in place, by another method.

    Weight, bias and running statistics carry over where the method has them (so do eps,
    momentum, device, dtype, training mode and requires_grad); importance weights start at 1.

    Args:
        network: holds nn.BatchNorm1d/2d/3d, nn.SyncBatchNorm or this package's BatchNorm2d.
        method: a name in :data:`METHODS` or a class; 1D and 3D layers only become sn.
        arguments: the method's own, such as ``omega`` or ``num_groups``.

    Returns:
        The names of the replaced layers, in the network's order; empty if there was none.

    Raises:
        ValueError: an unknown method; a 1D or 3D layer and another method than sn; a batch norm
            with further duties (timm's BatchNormAct2d also activates), or ``network`` itself one;
            frozen_bn in place of a layer without running statistics.
    """
    own_class = METHODS.get(method) if isinstance(method, str) else method
    if own_class is None:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    targets = {n: m for n, m in network.named_modules(remove_duplicate=False) if _is_batch_norm(m)}
    classes = {name: _target(name, module, own_class) for name, module in targets.items()}
    made: dict[nn.Module, nn.Module] = {}  # one layer under two names stays one layer
    for name, old in targets.items():
        if old not in made:
            made[old] = _replacement(old, classes[name], arguments)
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, made[old])
    return list(targets)


def _is_batch_norm(module: nn.Module) -> bool:
    kinds = nn.modules.batchnorm._BatchNorm | BatchNorm2d | BatchRenorm2d
    return isinstance(module, kinds) and not isinstance(module, nn.InstanceNorm2d)


def _target(name: str, module: nn.Module, own_class: type[MomentNorm2d]) -> type[MomentNorm2d]:
    if not name:
        raise ValueError("the network is a batch norm itself: there is no place to replace it in")
    if type(module) in _FOR_MAPS:
        if own_class is FrozenBatchNorm2d and module.running_mean is None:
            raise ValueError(
                f"{name} has no running statistics: frozen_bn needs them (track_running_stats=True)"
            )
        return own_class
    if type(module) in _OTHER_DIMENSIONS and own_class is SwitchNorm2d:
        return _OTHER_DIMENSIONS[type(module)]
    raise ValueError(
        f"{name} is a {type(module).__name__}: it cannot become a {own_class.__name__}"
    )


def _replacement(
    old: nn.Module, layer_class: type[MomentNorm2d], arguments: dict[str, Any]
) -> MomentNorm2d:
    assert isinstance(old, nn.modules.batchnorm._BatchNorm | BatchNorm2d)
    reference = old.weight if old.weight is not None else old.running_mean
    new = layer_class(
        old.num_features,
        old.eps,
        old.momentum,
        old.affine,
        old.track_running_stats,
        None if reference is None else reference.device,
        None if reference is None else reference.dtype,
        **arguments,
    )
    own = new.state_dict()
    carried = {key: value for key, value in old.state_dict().items() if key in own}
    new.load_state_dict({**own, **carried})
    for key in ("weight", "bias"):
        parameter = getattr(old, key)
        if parameter is not None and layer_class is not FrozenBatchNorm2d:
            getattr(new, key).requires_grad_(parameter.requires_grad)
    if isinstance(old, MomentNorm2d):
        new.relu = old.relu
    return new.train(old.training)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, MomentNorm2d) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy for deployment: each batch norm folded into the convolution or before it.

    Only layers that use stored statistics alone can be folded: nn.BatchNorm2d, BatchNorm2d,
    BatchRenorm2d, SyncBatchNorm2d, FrozenBatchNorm2d. SN, IN, LN and GN depend on the sample
    and stay. A batch norm is folded where its input is a convolution that nothing else uses.

    Args:
        network: in evaluation mode, traceable by torch.fx.

    Returns:
        A deep copy, with nn.Identity in place of what was folded, or what the layer did besides:
        the addition of a residual, a ReLU.

    Raises:
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode: call network.eval() first")
    folded = copy.deepcopy(network)
    modules = dict(folded.named_modules())
    nodes = [n for n in _Tracer().trace(folded).nodes if n.op == "call_module"]
    calls = [str(node.target) for node in nodes]
    for node in nodes:
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        name, source_name = str(node.target), str(source.target)
        norm, conv = modules[name], modules[source_name]
        alone = len(source.users) == 1 and calls.count(name) == calls.count(source_name) == 1
        if alone and isinstance(conv, nn.Conv2d) and _stores_statistics(norm):
            _set(folded, source_name, fuse_conv_bn_eval(conv, norm))
            _set(folded, name, _Rest(norm.relu) if _does_more(norm, node) else nn.Identity())
    return folded


class _Rest(nn.Module):
    """What remains of a folded layer that also adds a residual or ends in a ReLU."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = x if residual is None else x + residual
        return F.relu(y) if self.relu else y


def _does_more(norm: nn.Module, call: fx.Node) -> bool:
    return isinstance(norm, MomentNorm2d) and (norm.relu or len(call.args) + len(call.kwargs) > 1)


def _stores_statistics(norm: nn.Module) -> bool:
    if type(norm) in _OF_PYTORCH:
        return isinstance(norm.running_mean, torch.Tensor)
    built_in = isinstance(norm, MomentNorm2d) and type(norm) in METHODS.values()
    return built_in and bool(norm._stored_statistics_suffice)


def _set(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)
