"""torch.compile sees the plain formula, in one graph."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_reference import randomize
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from sn_imagenet.norms import BatchNorm2d, GroupNorm2d, PooledNorm2d, SwitchNorm2d, set_replicas


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("omega", [("in", "ln", "bn"), ("in", "ln", "bn", "gn")], ids="+".join)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_formula_equals_the_fused_op(
    omega: tuple[str, ...], replicas: int, momentum: float | None
) -> None:
    fused = SwitchNorm2d(6, momentum=momentum, omega=omega, num_groups=2).double()
    randomize(fused)
    set_replicas(fused, replicas)
    plain = copy.deepcopy(fused)
    plain.backend = "formula"
    for seed in range(2):
        torch.manual_seed(seed)
        x = torch.randn(4, 6, 3, 2, dtype=torch.float64, requires_grad=True)
        direction = torch.randn_like(x)
        y, expected = fused(x), plain(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y, [x, *fused.parameters()], direction),
            torch.autograd.grad(expected, [x, *plain.parameters()], direction),
        )
    torch.testing.assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()))
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("layer_class", [BatchNorm2d, GroupNorm2d, SwitchNorm2d])
def test_a_compiled_network_is_one_graph(layer_class: type[PooledNorm2d]) -> None:
    """aot_eager traces forward and backward without the minutes of code generation."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), layer_class(8), nn.ReLU(), nn.Conv2d(8, 8, 3), layer_class(8)
    )
    eager = copy.deepcopy(network)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 8, 8)
    for training in (True, False):
        for net in (network, eager):
            net.train(training)
            net.zero_grad()
        y, expected = compiled(x), eager(x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        y.square().sum().backward()
        expected.square().sum().backward()
        for ours, theirs in zip(network.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(dict(network.named_buffers()), dict(eager.named_buffers()))


def test_a_residual_network_is_one_graph() -> None:
    """ResNet-50's own blocks, one per stage: the graph of all 16 only takes longer to trace."""
    network = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3, norm_layer=SwitchNorm2d)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert compiled(torch.randn(2, 3, 32, 32)).isfinite().all()
