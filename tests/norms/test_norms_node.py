"""The compiled autograd node equals the Python one bit for bit."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from sn_imagenet.norms import (
    BatchNorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    SwitchNorm2d,
    set_replicas,
)
from sn_imagenet.norms.closed_form.combiner import ClosedForm
from sn_imagenet.norms.closed_form.cpp import CppTables, node
from sn_imagenet.norms.moment_norm import MomentNorm2d

pytestmark = pytest.mark.skipif(
    not CppTables.available() or node() is None, reason="no C++ compiler, or no headers of PyTorch"
)
METHODS = (BatchNorm2d, InstanceNorm2d, LayerNorm2d, GroupNorm2d, SwitchNorm2d)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
FROZEN = ("none", "x", "weight", "bias", "logits", "all parameters", "one logit")


def run_layer(
    method: type[MomentNorm2d],
    relu: bool,
    with_residual: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
    training: bool = True,
    frozen: str = "none",
    affine: bool = True,
) -> list[Tensor | None]:
    """Output, gradients and running statistics of a layer; ``frozen`` has no gradient."""
    torch.manual_seed(0)
    layer = method(8, affine=affine).to(torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    layer.relu = relu
    set_replicas(layer, 4)
    layer.train(training)
    for name, parameter in layer.named_parameters():
        one_logit = frozen == "one logit" and name == "mean_weight"
        logits = frozen == "logits" and name in ("mean_weight", "var_weight")
        parameter.requires_grad_(not (one_logit or logits or frozen in (name, "all parameters")))
    x = torch.randn(8, 8, 5, 3).to(dtype).to(memory_format=layout).requires_grad_(frozen != "x")
    residual = torch.randn(8, 8, 5, 3).to(dtype).requires_grad_() if with_residual else None
    y = layer(x, residual)
    if y.requires_grad:
        (y * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
    inputs = [x, *([] if residual is None else [residual]), *layer.parameters()]
    return [y.detach(), *(i.grad for i in inputs), *layer.buffers()]


def assert_same(monkeypatch: pytest.MonkeyPatch, *arguments: object, **options: object) -> None:
    ours = run_layer(*arguments, **options)  # type: ignore[arg-type]
    with monkeypatch.context() as patched:
        patched.setattr(CppTables, "apply", ClosedForm.apply)
        theirs = run_layer(*arguments, **options)  # type: ignore[arg-type]
    for our, their in zip(ours, theirs, strict=True):
        assert (our is None) == (their is None)
        assert our is None or their is None or torch.equal(our, their)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("relu", "with_residual"), product((False, True), repeat=2))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_nodes_give_the_same_bits(
    method: type[MomentNorm2d],
    relu: bool,
    with_residual: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for training in (True, False):
        assert_same(monkeypatch, method, relu, with_residual, dtype, layout, training)


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_the_nodes_give_the_same_bits_with_frozen_inputs(
    frozen: str, with_residual: bool, affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = SwitchNorm2d, True, with_residual, torch.float32, torch.channels_last
    assert_same(monkeypatch, *case, frozen=frozen, affine=affine)


def test_a_weight_changed_before_backward_is_an_error() -> None:
    layer = SwitchNorm2d(4)
    y = layer(torch.randn(2, 4, 3, 3, requires_grad=True))
    assert y.grad_fn is not None and "Mixture" in y.grad_fn.name()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_graph_is_recorded_under_no_grad() -> None:
    with torch.no_grad():
        assert not SwitchNorm2d(4)(torch.randn(2, 4, 3, 3)).requires_grad
