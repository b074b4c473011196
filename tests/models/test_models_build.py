"""timm's networks with other norm layers: layout, keys, parameters, initial values, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import LayerPosition, build_model, layer_positions
from sn_imagenet.norms import LayerNorm2d, MomentNorm2d, Moments, Statistics, norm_layers

Compose = Callable[..., ExperimentConfig]
Build = Callable[..., nn.Module]


class SwitchNorm2d(LayerNorm2d):
    """A user's layer with the name of a built-in one."""


@pytest.fixture(scope="module")
def build(composed: Compose) -> Build:
    """``build("norm=sn", ...)`` returns the network of that config, for ten classes."""

    def build_with(*overrides: str, classes: int = 10) -> nn.Module:
        config = composed("data=digits", *overrides)
        return build_model(config.model, config.norm, config.protocol, classes, config.seed)

    return build_with


def parameter_count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("model", "layers"),
    [("resnet50", 53), ("resnet50_mini", 53), ("resnet26_mini", 29), ("resnet14_mini", 17)],
)
@pytest.mark.parametrize("norm", ["bn", "gn", "in", "ln", "sn"])
def test_every_norm_layer_is_replaced(build: Build, model: str, layers: int, norm: str) -> None:
    network = build(f"model={model}", f"norm={norm}")
    assert len(norm_layers(network)) == layers
    assert not any(
        isinstance(m, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) for m in network.modules()
    )


def test_resnet50_has_timms_keys_plus_sns_importance_weights(build: Build) -> None:
    theirs = timm.create_model("resnet50", num_classes=10)
    bn, sn = build("model=resnet50", "norm=bn"), build("model=resnet50", "norm=sn")
    assert list(bn.state_dict()) == list(theirs.state_dict())
    norms = [name for name, m in theirs.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert list(norm_layers(sn)) == norms
    assert norms[0] == "bn1" and "layer1.0.downsample.1" in norms
    extra = {f"{name}.{key}" for name in norms for key in ("mean_weight", "var_weight")}
    assert set(sn.state_dict()) == set(theirs.state_dict()) | extra
    # Claim 12: six parameters per layer.
    assert parameter_count(bn) == parameter_count(theirs)
    assert parameter_count(sn) - parameter_count(bn) == 318


@pytest.mark.parametrize("model", ["resnet50", "resnet50_mini"])
def test_the_53_positions_of_resnet50(build: Build, model: str) -> None:
    """Stage and convolution of each layer, named as in Fig. 3."""
    expected = {"bn1": LayerPosition("res1", "7x7" if model == "resnet50" else "3x3")}
    for stage, blocks in {2: 3, 3: 4, 4: 6, 5: 3}.items():
        for block in range(blocks):
            prefix = f"layer{stage - 1}.{block}"
            for number, conv in ((1, "1x1"), (2, "3x3"), (3, "1x1")):
                expected[f"{prefix}.bn{number}"] = LayerPosition(f"res{stage}", conv)
            if block == 0:
                expected[f"{prefix}.downsample.1"] = LayerPosition(f"res{stage}", "shortcut")
    positions = layer_positions(build(f"model={model}", "norm=sn"))
    assert list(positions.items()) == list(expected.items())


def test_timms_weights_give_timms_output(build: Build) -> None:
    theirs = timm.create_model("resnet50", num_classes=10)
    ours = build("model=resnet50", "norm=bn")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("model", ["resnet50_mini", "resnet14_mini"])
def test_mini_networks_map_16_pixels_to_2_by_2(build: Build, model: str) -> None:
    network: Any = build(f"model={model}")
    x = torch.randn(2, 3, 16, 16)
    assert network.forward_features(x).shape == (2, 512 // 8 * 4, 2, 2)
    assert network(x).shape == (2, 10)
    assert network.forward_features(torch.randn(2, 3, 32, 32)).shape[2:] == (4, 4)


def test_convolutions_are_he_normal_by_fan_out(build: Build) -> None:
    for name, module in build("model=resnet50").named_modules():
        if isinstance(module, nn.Conv2d):
            k = module.kernel_size[0] * module.kernel_size[1]
            expected = math.sqrt(2 / (k * module.out_channels))
            count = module.weight.numel()
            # The standard error of a standard deviation s of n values is s / sqrt(2 n).
            assert module.weight.std().item() == pytest.approx(
                expected, rel=6 / math.sqrt(2 * count)
            ), name
            assert abs(module.weight.mean().item()) < 6 * expected / math.sqrt(count), name


@pytest.mark.parametrize("norm", ["bn", "gn", "sn"])
def test_the_protocol_decides_the_last_gamma_of_a_block(build: Build, norm: str) -> None:
    paper = build("model=resnet50", f"norm={norm}")
    code = build("model=resnet50", f"norm={norm}", "protocol=official_code")
    zeros = set()
    for name, layer in norm_layers(paper).items():
        assert (layer.weight == 1).all() and (layer.bias == 0).all(), name
        other = norm_layers(code)[name]
        assert (other.bias == 0).all()
        if (other.weight == 0).all():
            zeros.add(name)
        else:
            assert (other.weight == 1).all(), name
    blocks = {1: 3, 2: 4, 3: 6, 4: 3}
    assert zeros == {f"layer{s}.{b}.bn3" for s, count in blocks.items() for b in range(count)}


def test_importance_weights_start_at_one(build: Build) -> None:
    for layer in norm_layers(build("model=resnet50_mini", "norm=sn")).values():
        assert layer.mean_weight.tolist() == layer.var_weight.tolist() == [1, 1, 1]


def test_initial_values_depend_only_on_the_seed(build: Build) -> None:
    options = ("model=resnet14_mini", "norm=sn")
    state = torch.get_rng_state()
    first = build(*options, "seed=3")
    assert torch.get_rng_state().equal(state), "the global generator was used"
    torch.rand(5)
    same, other = build(*options, "seed=3"), build(*options, "seed=4")
    for name, tensor in first.state_dict().items():
        assert tensor.equal(same.state_dict()[name]), name
    for name in ("conv1.weight", "layer4.0.conv2.weight", "fc.weight"):
        assert not first.state_dict()[name].equal(other.state_dict()[name]), name


def test_the_method_does_not_change_the_other_weights(build: Build) -> None:
    """All methods start from the same convolutions and classifier."""
    bn = build("model=resnet14_mini", "norm=bn").state_dict()
    sn = build("model=resnet14_mini", "norm=sn").state_dict()
    for name, tensor in bn.items():
        assert tensor.equal(sn[name]), name


@pytest.mark.parametrize("norm", ["bn", "gn", "in", "ln", "sn"])
@pytest.mark.parametrize("model", ["resnet26d", "regnetx_002", "efficientnet_b0"])
def test_other_timm_networks_get_finite_gradients(build: Build, model: str, norm: str) -> None:
    network = build(f"model.name={model}", f"norm={norm}")
    theirs = timm.create_model(model, num_classes=10)
    assert len(norm_layers(network)) == sum(isinstance(m, nn.BatchNorm2d) for m in theirs.modules())
    positions = layer_positions(network)
    assert list(positions) == list(norm_layers(network))
    convs = {position.conv for position in positions.values()}
    assert convs <= {"1x1", "3x3", "5x5", "7x7", "shortcut"}
    assert "shortcut" in convs or model == "efficientnet_b0"
    logits = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 10)
    logits.logsumexp(1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("model", ["resnet26d", "regnetx_002", "efficientnet_b0"])
@pytest.mark.parametrize("training", [False, True])
def test_other_networks_keep_their_activation(build: Build, model: str, training: bool) -> None:
    """For example EfficientNet's SiLU. With BN and the same weights the output is timm's."""
    theirs = timm.create_model(model, num_classes=10).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for buffer in theirs.buffers():
            if buffer.is_floating_point():
                buffer += torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype)
    ours = build(f"model.name={model}", "norm=bn").double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)
    # timm adds no randomness: stochastic depth and dropout are zero by default.
    with torch.no_grad():
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.state_dict()[name], buffer)


def test_two_layer_classes_of_one_name_do_not_mix(build: Build) -> None:
    """A user's layer may have the name of a layer that an earlier network was built with."""
    build("model.name=regnetx_002", "norm=sn")
    target = f"norm.target={__name__}.SwitchNorm2d"
    network = build("model.name=regnetx_002", "norm=ln", target)
    assert all(isinstance(layer, SwitchNorm2d) for layer in norm_layers(network).values())
    again = build("model.name=regnetx_002", "norm=sn")
    assert not any(isinstance(layer, SwitchNorm2d) for layer in norm_layers(again).values())
    assert not norm_layers(timm.create_model("regnetx_002"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=resnet5O"], r"model\.name=resnet5O: expected resnet50_mini, .*timm"),
        (["model.name=nfnet_f0"], r"model\.name=nfnet_f0 .*expected a convolutional network"),
        (["model=resnet14_mini", "+model.args.widht=2"], r"model\.args=.*widht"),
        (["model.name=resnet18", "+model.args.widht=2"], r"model\.args=.*widht"),
        (["norm.target=nowhere.Norm"], r"norm\.target=nowhere\.Norm: cannot be imported"),
        (["norm.target=sn_imagenet.norms.Nothing"], r"norm\.target=.*Nothing: cannot be"),
        (["norm.target=torch.nn.BatchNorm2d"], r"norm\.target=torch.*expected a subclass"),
        (["norm.target=sn_imagenet.norms.normalize"], r"norm\.target=.*normalize: expected a"),
        (["+norm.args.groups=3"], r"norm\.args=.*groups"),
        (["norm.args.omega=[in,xn]"], r"norm\.args=.*omega=.*xn.*expected"),
        (["norm.args.omega=[]"], r"norm\.args=.*expected"),
        (["model.name=efficientnet_b0", "protocol=official_code"], r"gamma=true: efficientnet_b0"),
    ],
)
def test_an_invalid_config_is_one_error(build: Build, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(*overrides)


class Forgetful2d(MomentNorm2d):
    def combine(self, moments: Moments) -> Statistics:
        return self.batch_statistics(moments)


class Unstable2d(MomentNorm2d):
    stores_statistics = True

    def combine(self, moments: Moments) -> Statistics:
        return moments.batch()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Forgetful2d, r"Forgetful2d uses the batch's statistics: set stores_statistics = True"),
        (Unstable2d, r"in evaluation too: in combine, call self\.batch_statistics\(moments\)"),
    ],
)
def test_a_method_that_evaluates_with_its_batch_is_told_so(
    build: Build, target: type[MomentNorm2d], message: str
) -> None:
    own = f"norm.target={__name__}.{target.__name__}"
    with pytest.raises(ConfigError, match=rf"^{own}: .*{message}"):
        build("norm=ln", own)
