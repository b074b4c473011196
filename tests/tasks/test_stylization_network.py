"""The transformation network against its formula, at any size, and in strips."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sn_imagenet.errors import ConfigError
from sn_imagenet.models import fuse_relus, transform_net
from sn_imagenet.models.transform_net import CHOICES, TransformNet
from sn_imagenet.norms import BatchNorm2d, InstanceNorm2d, SwitchNorm2d, norm_layers

ALL_CHOICES = list(itertools.product(CHOICES["padding"], CHOICES["upsampling"]))


def make(norm: Callable[..., Any], padding: str, upsampling: str) -> TransformNet:
    torch.manual_seed(0)
    network = TransformNet(norm, padding, upsampling)
    for layer in norm_layers(network).values():
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        torch.nn.init.normal_(layer.bias)
    return network


def photographs(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(count, 3, 8, 8, generator=generator) * 255
    return F.interpolate(small, (height, width), mode="bilinear")


def formula(state: dict[str, Tensor], images: Tensor, padding: str, upsampling: str) -> Tensor:
    """The network with IN, written out with functions of PyTorch."""
    start = padding == "reflect_start"

    def pad(x: Tensor, by: int) -> Tensor:
        return F.pad(x, (by,) * 4) if start else F.pad(x, (by,) * 4, mode="reflect")

    def norm(x: Tensor, name: str) -> Tensor:
        var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        weight, bias = (state[f"{name}.{key}"][:, None, None] for key in ("weight", "bias"))
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = F.pad(images, (40,) * 4, mode="reflect") if start else images
    for part, index, by, stride in ((0, 0, 4, 1), (0, 3, 1, 2), (1, 0, 1, 2)):
        x = F.conv2d(pad(x, by), state[f"parts.{part}.{index}.weight"], stride=stride)
        x = F.relu(norm(x, f"parts.{part}.{index + 1}"))
    for i in range(5):
        name, y = f"parts.2.{i}.layers", x
        for conv in (0, 3):
            y = F.conv2d(y if start else pad(y, 1), state[f"{name}.{conv}.weight"])
            y = norm(y, f"{name}.{conv + 1}")
            y = F.relu(y) if conv == 0 else y
        x = y + (x[:, :, 2:-2, 2:-2] if start else x)
    index = 1 if upsampling == "nearest" else 0
    for part in (3, 4):
        weight = state[f"parts.{part}.{index}.weight"]
        if upsampling == "nearest":
            x = F.conv2d(pad(x.repeat_interleave(2, 2).repeat_interleave(2, 3), 1), weight)
        else:
            x = F.conv_transpose2d(x, weight, None, 2, 1, 1)
        x = F.relu(norm(x, f"parts.{part}.{index + 1}"))
    last = f"parts.4.{index + 3}"
    return F.conv2d(pad(x, 4), state[f"{last}.weight"], state[f"{last}.bias"])


@pytest.mark.parametrize(("padding", "upsampling"), ALL_CHOICES)
def test_the_network_computes_its_formula(padding: str, upsampling: str) -> None:
    network = make(InstanceNorm2d, padding, upsampling).double()
    network.output = "linear" if padding == "reflect" else "tanh"
    images = photographs(2, 48, 64).double()
    expected = formula(dict(network.state_dict()), images, padding, upsampling)
    if padding != "reflect":
        expected = 127.5 + 150 * expected.tanh()
    torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


def test_there_are_15_layers_and_their_relus_can_be_fused() -> None:
    network = make(SwitchNorm2d, "reflect", "nearest")
    images = photographs(2, 16, 16)
    expected = network(images)
    assert len(norm_layers(network)) == 15
    assert len(fuse_relus(network)) == 10  # the second of a block is followed by an addition
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [BatchNorm2d, InstanceNorm2d, SwitchNorm2d])
@pytest.mark.parametrize(("padding", "upsampling"), ALL_CHOICES)
def test_strips_change_only_rounding(
    norm: Callable[..., Any], padding: str, upsampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if norm is SwitchNorm2d:
        norm = partial(SwitchNorm2d, instance_correction=1)
    network = make(norm, padding, upsampling)
    if upsampling == "nearest":
        fuse_relus(network)
    network(photographs(2, 48, 48))  # moves the running statistics
    network.eval()
    with monkeypatch.context() as patch:
        patch.setattr(transform_net, "_STRIP", 16 * 60)
        patch.setattr(transform_net, "_PLAIN", 0)
        for size in ((130, 60), (131, 77), (45, 58)):
            image = photographs(1, *size)
            with torch.no_grad():
                expected = network(image)
            found = network.stylize(image)
            assert found.shape == image.shape
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)  # of 255


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model.args.padding=mirror: expected one of reflect,"):
        TransformNet(InstanceNorm2d, padding="mirror")
