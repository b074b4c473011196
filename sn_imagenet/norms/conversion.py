"""Convert existing networks: replace batch norm by another method, or fold it into convolutions."""

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
_TORCH_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_BATCH_NORMS_2D = (*_TORCH_BATCH_NORMS, BatchNorm2d, SyncBatchNorm2d)


def convert_norm(
    network: nn.Module, method: str | type[MomentNorm2d], **arguments: Any
) -> list[str]:
    """Replace every batch norm inside ``network``, in place, by another method.

    Weight, bias and running statistics are kept if the method has them, and so are eps, momentum,
    device, dtype, training mode and requires_grad. Importance weights start at 1.

    Args:
        network: contains nn.BatchNorm1d/2d/3d, nn.SyncBatchNorm or this package's BatchNorm2d.
        method: a name in :data:`METHODS` or a class; 1D and 3D layers can only become sn.
        arguments: passed to the method, such as ``omega`` or ``num_groups``.

    Returns:
        The names of the replaced layers, in the network's order; empty if it has no batch norm.

    Raises:
        ValueError: the method is unknown; a 1D or 3D layer would become another method than sn; a
            batch norm does more than normalize (timm's BatchNormAct2d also activates); ``network``
            is itself a batch norm; frozen_bn replaces a layer without running statistics.
    """
    method_class = METHODS.get(method) if isinstance(method, str) else method
    if method_class is None:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    targets = {n: m for n, m in network.named_modules(remove_duplicate=False) if _is_batch_norm(m)}
    classes = {name: _target_class(name, module, method_class) for name, module in targets.items()}
    replacements: dict[nn.Module, nn.Module] = {}  # one layer under two names stays one layer
    for name, old in targets.items():
        if old not in replacements:
            replacements[old] = _replacement(old, classes[name], arguments)
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, replacements[old])
    return list(targets)


def _is_batch_norm(module: nn.Module) -> bool:
    kinds = nn.modules.batchnorm._BatchNorm | BatchNorm2d | BatchRenorm2d
    return isinstance(module, kinds) and not isinstance(module, nn.InstanceNorm2d)


def _target_class(name: str, module: nn.Module, method: type[MomentNorm2d]) -> type[MomentNorm2d]:
    if not name:
        raise ValueError("the network itself is a batch norm, which cannot be replaced in place")
    if type(module) in _BATCH_NORMS_2D:
        if method is FrozenBatchNorm2d and module.running_mean is None:
            raise ValueError(
                f"{name} has no running statistics: frozen_bn needs them (track_running_stats=True)"
            )
        return method
    if type(module) in _OTHER_DIMENSIONS and method is SwitchNorm2d:
        return _OTHER_DIMENSIONS[type(module)]
    raise ValueError(f"{name} is a {type(module).__name__}: it cannot become a {method.__name__}")


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
    initial = new.state_dict()
    shared = {key: value for key, value in old.state_dict().items() if key in initial}
    new.load_state_dict({**initial, **shared})
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
    """A copy for deployment in which batch norms are folded into the convolutions before them.

    Only layers that normalize with stored statistics alone can be folded: nn.BatchNorm2d,
    BatchNorm2d, BatchRenorm2d, SyncBatchNorm2d, FrozenBatchNorm2d. SN, IN, LN and GN depend on the
    sample and stay. The convolution's output must have no other use.

    Args:
        network: in evaluation mode, traceable by torch.fx.

    Returns:
        A deep copy with nn.Identity, or the residual addition and the ReLU, in place of each
        folded layer.

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
            _set(folded, name, _Epilogue(norm.relu) if _has_epilogue(norm, node) else nn.Identity())
    return folded


class _Epilogue(nn.Module):
    """The residual addition and the ReLU of a folded layer."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = x if residual is None else x + residual
        return F.relu(y) if self.relu else y


def _has_epilogue(norm: nn.Module, call: fx.Node) -> bool:
    return isinstance(norm, MomentNorm2d) and (norm.relu or len(call.args) + len(call.kwargs) > 1)


def _stores_statistics(norm: nn.Module) -> bool:
    if type(norm) in _TORCH_BATCH_NORMS:
        return isinstance(norm.running_mean, torch.Tensor)
    built_in = isinstance(norm, MomentNorm2d) and type(norm) in METHODS.values()
    return built_in and bool(norm._stored_statistics_suffice)


def _set(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)
