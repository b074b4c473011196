"""torch.compile traces the plain formula into one graph."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from norm_reference import randomize
from timm.models.resnet import Bottleneck
from torch import nn

from sn_imagenet.norms import BatchNorm2d, GroupNorm2d, MomentNorm2d, SwitchNorm2d

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++ to compile the generated code"
)


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    """Dynamo caches by code object, for all networks together, up to a limit."""
    torch.compiler.reset()


@pytest.mark.parametrize("layer_class", [BatchNorm2d, GroupNorm2d, SwitchNorm2d])
def test_a_compiled_network_is_one_graph(layer_class: type[MomentNorm2d]) -> None:
    """aot_eager traces forward and backward without minutes of code generation."""
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


@pytest.mark.slow
def test_resnet_50_is_one_graph() -> None:
    """Without code generation: the traced graph itself is executed."""
    torch.manual_seed(0)
    network = timm.create_model("resnet50", norm_layer=SwitchNorm2d, num_classes=3)
    eager = copy.deepcopy(network)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-3, atol=1e-3)
    (graph,) = graphs
    variances = [node for node in graph.graph.nodes if "var_mean" in str(node.target)]
    assert len(variances) == 53 * 3  # over (H, W), then for LN and for BN, in every layer
    torch.testing.assert_close(network.bn1.running_var, eager.bn1.running_var)


def narrow_network(block: bool) -> nn.Module:
    """A stem, one block of ResNet-50 if ``block``, and a classifier. Compilation takes seconds per
    layer, so the network is as small as possible."""
    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), SwitchNorm2d(16))
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        SwitchNorm2d(8),
        nn.ReLU(inplace=True),
        Bottleneck(8, 4, downsample=shortcut, norm_layer=SwitchNorm2d) if block else shortcut,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    randomize(network)
    return network


def step(network: nn.Module, x: torch.Tensor, half: bool = False) -> list[torch.Tensor]:
    """Logits and all parameters' gradients of a forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = network(x)
    network.zero_grad()
    F.cross_entropy(logits.float(), torch.arange(len(x)) % 5).backward()
    return [logits, *(p.grad for p in network.parameters())]


def distance(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative distance of corresponding tensors, in the Euclidean norm."""
    return max(
        float((a.float() - b.float()).norm().detach() / b.float().norm().detach())
        for a, b in zip(actual, expected, strict=True)
    )


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "block"), [("default", True), ("reduce-overhead", False)])
def test_compiled_code_equals_eager(mode: str, block: bool) -> None:
    """reduce-overhead records no CUDA graphs on the CPU, but its results must still be correct."""
    network = narrow_network(block)
    eager = copy.deepcopy(network)
    compiled = torch.compile(network, fullgraph=True, mode=mode)
    for seed in range(3):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        assert distance(step(compiled, x), step(eager, x)) < 1e-3
    torch.testing.assert_close(dict(network.named_buffers()), dict(eager.named_buffers()))


@needs_compiler
@pytest.mark.slow
def test_autocast_keeps_statistics_in_fp32_eager_and_compiled() -> None:
    """Eager and compiled results differ from fp32 only by bf16's rounding."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    single, half = narrow_network(block=False), narrow_network(block=False)
    compiled = copy.deepcopy(half)
    exact = step(single, x)
    traced = torch.compile(compiled, fullgraph=True)
    for network, called in ((half, half), (compiled, traced)):
        actual = step(called, x, half=True)
        assert actual[0].dtype == torch.bfloat16
        # Not equal, so bf16 was used. Its rounding is 0.004, and there are two layers.
        assert 1e-4 < distance(actual[:1], exact[:1]) < 0.05
        assert distance(actual, exact) < 0.2
        assert all(b.dtype in (torch.float32, torch.int64) for b in network.buffers())
        variance = float((network[1].running_var - single[1].running_var).abs().max())
        assert variance < 1e-2 * float(single[1].running_var.max())
