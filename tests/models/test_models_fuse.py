"""Fusing ReLUs does not change a ResNet's names, keys and numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.models import build_model, fuse_relus, layer_positions
from sn_imagenet.norms import BatchNorm2d, SwitchNorm2d, norm_layers, set_replicas

Compose = Callable[..., ExperimentConfig]


class Doubled(SwitchNorm2d):
    """Overrides forward, so the ReLU must stay behind it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, residual) - 0.3


def small_resnet(block: Any = Bottleneck, norm: Any = SwitchNorm2d, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"layers": [2, 1, 1, 1], "channels": (8, 8, 16, 16), "num_classes": 3}
    network = ResNet(block, norm_layer=norm, **{**sizes, **arguments}).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def step(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    network.zero_grad()
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y, [p.grad for p in network.parameters()], dict(network.named_buffers())


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # One ReLU in the stem, two in each of 5 basic blocks or three in each of 5 bottlenecks.
    "basic": (partial(small_resnet, BasicBlock), 1 + 5 * 2),
    "bottleneck": (small_resnet, 1 + 5 * 3),
    "bn": (partial(small_resnet, norm=BatchNorm2d), 16),
    "deep stem": (partial(small_resnet, stem_type="deep", stem_width=8), 2 + 16),
    "attention": (partial(small_resnet, block_args={"attn_layer": "se"}), 1 + 5 * 2),
    "drop path": (partial(small_resnet, drop_path_rate=1e-9), 1 + 5 * 3 - 4),
    "drop block": (partial(small_resnet, drop_block_rate=1e-9), 16 - 2),
    "anti-aliasing": (partial(small_resnet, aa_layer=BlurPool2d), 16),
    "silu": (partial(small_resnet, act_layer=nn.SiLU), 0),
    "own forward": (partial(small_resnet, norm=Doubled), 0),
    "not a resnet": (lambda: timm.create_model("regnetx_002", num_classes=3).double(), 0),
}


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_fusing_keeps_results_and_names(case: str, replicas: int) -> None:
    build, count = CASES[case]
    plain = build()
    fused = copy.deepcopy(plain)
    assert len(fuse_relus(fused)) == count
    assert sum(layer.relu for layer in norm_layers(fused).values()) == count
    before = {name for name, m in plain.named_modules() if type(m) is nn.ReLU}
    after = {name for name, m in fused.named_modules() if type(m) is nn.ReLU}
    assert len(before - after) == count and after <= before
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in plain.named_modules()]
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert layer_positions(fused) == layer_positions(plain)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for training in (True, False):
        for network in (plain, fused):
            set_replicas(network, replicas)
            network.train(training)
        torch.manual_seed(1)
        expected = step(plain, x)
        torch.manual_seed(1)
        torch.testing.assert_close(step(fused, x), expected, rtol=1e-9, atol=1e-9)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)
    assert fuse_relus(fused) == []


def test_a_fused_network_compiles() -> None:
    network = small_resnet(norm=BatchNorm2d)
    fuse_relus(network)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.parametrize("model", ["resnet50_mini", "resnet14_mini"])
def test_the_config_decides_whether_relus_are_fused(composed: Compose, model: str) -> None:
    outputs = []
    for fuse in ("true", "false"):
        config = composed("data=digits", f"model={model}", f"model.fuse_relu={fuse}")
        network = build_model(config.model, config.norm, config.protocol, 10, config.seed)
        fused = [layer.relu for layer in norm_layers(network).values()]
        shortcuts = sum("downsample" in name for name in norm_layers(network))
        assert sum(fused) == (len(fused) - shortcuts if fuse == "true" else 0)
        outputs.append(network(torch.linspace(-1, 1, 4 * 3 * 16 * 16).view(4, 3, 16, 16)))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
