"""What rivals of SN need of a network besides their layers, and their programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from trained_runs import Trained

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import build_model, initialize_from_data
from sn_imagenet.models.build import require_complete_method
from sn_imagenet.models.export import export
from sn_imagenet.norms import FilterResponseNorm2d, norm_layers

Compose = Callable[..., ExperimentConfig]
MEAN_BN = ("norm.args.mean_only_bn=true", "norm.test_statistics=moving_average")


def build(config: ExperimentConfig) -> nn.Module:
    return build_model(config.model, config.norm, config.protocol, 10, config.seed)


def images(count: int = 16) -> Tensor:
    return 2 + 3 * torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mean_bn", [False, True])
@pytest.mark.parametrize("model", ["resnet14_mini", "test_resnet"])
def test_the_data_dependent_initialization(composed: Compose, model: str, mean_bn: bool) -> None:
    """Before ReLU and residual, each layer's output has mean 0 and variance 1 on that batch."""
    config = composed(
        "data=digits", f"model.name={model}", "norm=wn", *(MEAN_BN if mean_bn else ()),
        "model.fuse_relu=false",
    )  # fmt: skip
    network, batch = build(config), images()
    assert initialize_from_data(network, lambda net: net(batch))
    outputs: dict[str, Tensor] = {}
    for name, layer in norm_layers(network).items():
        layer.register_forward_hook(lambda m, i, y, name=name: outputs.update({name: y.clone()}))
    network.train(mean_bn)(batch)
    assert outputs.keys() == norm_layers(network).keys()
    for name, y in outputs.items():
        var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        assert mean.abs().max() < 1e-3, name
        torch.testing.assert_close(var, torch.ones_like(var), rtol=1e-3, atol=1e-3)


def test_the_initialization_does_not_depend_on_fused_relus(composed: Compose) -> None:
    states = []
    for fuse in ("true", "false"):
        network = build(composed("data=digits", "model=resnet14_mini", "norm=wn",
                                 f"model.fuse_relu={fuse}"))  # fmt: skip
        initialize_from_data(network, lambda net: net(images()))
        states.append(network.state_dict())
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


def test_other_methods_are_not_initialized_from_data(composed: Compose) -> None:
    network = build(composed("data=digits", "model=resnet14_mini", "norm=mean_bn"))
    assert not initialize_from_data(network, lambda net: pytest.fail("ran"))


@pytest.mark.parametrize("model", ["densenet121", "resnetv2_50"])
def test_weight_norm_needs_a_convolution_before_each_layer(composed: Compose, model: str) -> None:
    network = build(composed("data=digits", f"model.name={model}", "norm=wn"))
    with pytest.raises(ConfigError, match="follows each convolution"):
        initialize_from_data(network, lambda net: net(images()))


def test_a_network_that_needs_gamma_is_refused_without_it(composed: Compose) -> None:
    config = composed("data=digits", "model.name=regnetx_002", "norm=mean_bn")
    with pytest.raises(ConfigError, match=r"model\.name=regnetx_002 .*cannot build it"):
        build(config)


@pytest.mark.parametrize("norm", ["ssn", "wn", "frn"])
def test_a_program_of_torch_export(
    trained: Callable[..., Trained], tmp_path: Path, norm: str
) -> None:
    exported = export(
        trained(f"norm={norm}").path, tmp_path / "out",
        "moving_average" if norm == "ssn" else None, pt2=True,
    )  # fmt: skip
    assert "model.pt2" in exported.files


@pytest.mark.parametrize("fuse", ["true", "false"])
def test_the_threshold_of_frn_replaces_every_relu(composed: Compose, fuse: str) -> None:
    network = build(
        composed("data=digits", "model=resnet14_mini", "norm=frn", f"model.fuse_relu={fuse}")
    )
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())
    layers = norm_layers(network)
    thresholds = {name for name, layer in layers.items() if layer.tau is not None}
    assert thresholds == {name for name in layers if "downsample" not in name}
    assert all(type(layer) is FilterResponseNorm2d for layer in layers.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(("norm=frn", "model.name=regnetx_002"), "its own activation replaces the ReLUs"),
     (("norm=frn", "model.name=resnet18", "+model.args.drop_path_rate=0.1"), "replaces the ReLUs"),
     (("norm=wn",), "normalizes the weights of convolutions")],
)  # fmt: skip
def test_networks_that_a_method_cannot_use_are_refused(
    composed: Compose, overrides: tuple[str, ...], message: str
) -> None:
    config = composed("data=digits", "model=resnet14_mini", *overrides)
    network = build(config)
    for module in network.modules():
        if is_parametrized(module):  # as in a task that builds its own network
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    with pytest.raises(ConfigError, match=message):
        require_complete_method(network, config.norm)
