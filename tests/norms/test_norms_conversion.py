"""convert_norm on networks of timm and of plain modules."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from norm_reference import randomize
from torch import nn

from sn_imagenet.norms import (
    GroupNorm2d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    convert_norm,
    norm_layers,
)


def trained(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomize(module)
    network(torch.randn(4, 3, 32, 32))
    return network


def test_convert_norm_replaces_all_layers_in_place() -> None:
    network = trained().eval()
    reference = copy.deepcopy(network)
    network.layer1[0].bn1.weight.requires_grad_(False)
    names = convert_norm(network, "sn", omega=("ln", "bn"))
    assert names == [n for n, m in reference.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(names) == 20 and names == list(norm_layers(network))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    for name in names:
        new, old = network.get_submodule(name), reference.get_submodule(name)
        assert type(new) is SwitchNorm2d and new.omega == ("ln", "bn") and not new.training
        assert new.eps == old.eps and new.momentum == old.momentum
        for key, value in old.state_dict().items():
            torch.testing.assert_close(new.state_dict()[key], value, rtol=0, atol=0)
    assert not network.layer1[0].bn1.weight.requires_grad
    assert network.layer1[0].bn2.weight.requires_grad
    network.train()(torch.randn(2, 3, 32, 32)).sum().backward()


def test_a_converted_batch_norm_can_be_converted_again() -> None:
    network = trained().eval()
    x = torch.randn(2, 3, 32, 32)
    expected = network(x)
    convert_norm(network, "bn")
    torch.testing.assert_close(network(x), expected)
    assert len(convert_norm(network, "gn", num_groups=4)) == 20
    assert all(type(layer) is GroupNorm2d for layer in norm_layers(network).values())
    assert convert_norm(network, "sn") == []


def test_conversion_keeps_dimensions_and_arguments() -> None:
    network = nn.Sequential(
        nn.BatchNorm1d(4, affine=False),
        nn.BatchNorm3d(4, track_running_stats=False),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None).double(),
    )
    convert_norm(network, "sn")
    assert [type(m) for m in network] == [SwitchNorm1d, SwitchNorm3d, SwitchNorm2d]
    assert network[0].weight is None and network[1].running_mean is None
    assert network[2].eps == 1e-3 and network[2].momentum is None
    assert network[2].mean_weight.dtype == torch.float64


def test_a_shared_layer_stays_shared() -> None:
    norm = nn.BatchNorm2d(4)
    network = nn.ModuleDict({"a": norm, "b": norm})
    assert convert_norm(network, "sn") == ["a", "b"]
    assert network["a"] is network["b"]


def test_convert_norm_rejects_layers_that_it_would_break() -> None:
    with pytest.raises(ValueError, match="method='xn': expected one of bn"):
        convert_norm(nn.Sequential(), "xn")
    with pytest.raises(ValueError, match="cannot be replaced in place"):
        convert_norm(nn.BatchNorm2d(4), "sn")
    with pytest.raises(ValueError, match="0 is a BatchNorm1d: it cannot become a GroupNorm2d"):
        convert_norm(nn.Sequential(nn.BatchNorm1d(4)), "gn")
    unknown = nn.Sequential(type("MyBatchNorm", (nn.BatchNorm2d,), {})(4))
    with pytest.raises(ValueError, match="0 is a MyBatchNorm: it cannot become a SwitchNorm2d"):
        convert_norm(unknown, "sn")
    assert not norm_layers(unknown), "an error leaves the network unchanged"


def test_frozen_bn_needs_running_statistics() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="1 has no running statistics: frozen_bn needs them"):
        convert_norm(network, "frozen_bn")
    assert type(network[0]) is nn.BatchNorm2d


def test_the_method_may_be_a_class() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm1d(4))
    assert convert_norm(network, SwitchNorm2d, omega=["in", "bn"]) == ["1", "2"]
    assert type(network[1]) is SwitchNorm2d
    assert network[1].omega == ("in", "bn")


@pytest.mark.parametrize(
    "name",
    ["efficientnet_b0", "regnetx_002", "mobilenetv3_small_050", "densenet121", "resnetv2_18d"],
)
def test_layers_that_normalize_and_activate_keep_their_activation(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=3).double().train()
    ours = copy.deepcopy(theirs)
    names = convert_norm(ours, "bn")
    assert len(names) == sum(isinstance(m, nn.BatchNorm2d) for m in theirs.modules()) > 10
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    expected, output = theirs(x), ours(x)
    torch.testing.assert_close(output, expected)
    expected.square().sum().backward()
    output.square().sum().backward()
    for (key, theirs_own), ours_own in zip(
        theirs.named_parameters(), ours.parameters(), strict=True
    ):
        torch.testing.assert_close(ours_own.grad, theirs_own.grad, msg=key, rtol=1e-4, atol=1e-6)
    assert convert_norm(ours, "sn") == names == [*norm_layers(ours)]
    assert all(isinstance(layer, SwitchNorm2d) for layer in norm_layers(ours).values())
    ours(x).sum().backward()


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "resnetv2_50x1_bit"])
def test_networks_without_batch_norm_stay_as_they_are(name: str) -> None:
    assert convert_norm(timm.create_model(name, num_classes=3), "sn") == []
