"""Stored statistics, checkpoints, errors, and layers in timm's networks."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from norm_reference import randomize
from torch import nn

from sn_imagenet.norms import (
    BatchAverage,
    BatchNorm2d,
    GroupNorm2d,
    InstanceNorm2d,
    LayerNorm2d,
    MomentNorm2d,
    SwitchNorm2d,
    collect_batch_averages,
    importance_weights,
    norm_layers,
    normalize,
    set_replicas,
    stored_statistics,
)

LAYERS = [BatchNorm2d, InstanceNorm2d, LayerNorm2d, GroupNorm2d, SwitchNorm2d]


def test_switch_norm_has_the_authors_parameter_names() -> None:
    assert set(SwitchNorm2d(6).state_dict()) == {
        "weight",
        "bias",
        "mean_weight",
        "var_weight",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert "running_mean" not in SwitchNorm2d(6, omega=("in", "ln")).state_dict()


@pytest.mark.parametrize("layer_class", LAYERS)
def test_every_layer_works_as_timms_norm_layer(layer_class: type[MomentNorm2d]) -> None:
    network = timm.create_model("resnet18", num_classes=3, norm_layer=layer_class)
    layers = norm_layers(network)
    assert len(layers) == 20
    assert all(type(layer) is layer_class for layer in layers.values())
    assert set(importance_weights(network)) == (
        set(layers) if layer_class is SwitchNorm2d else set()
    )
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_wrong_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match=r"omega=\['bn', 'xn'\]: expected a non-empty set of in"):
        SwitchNorm2d(4, omega=("bn", "xn"))
    with pytest.raises(ValueError, match="non-empty"):
        SwitchNorm2d(4, omega=())
    with pytest.raises(ValueError, match="each once"):
        SwitchNorm2d(4, omega=("bn", "bn"))
    with pytest.raises(ValueError, match="num_groups=0: expected at least 1"):
        GroupNorm2d(4, num_groups=0)
    with pytest.raises(ValueError, match="num_features=0"):
        BatchNorm2d(0)
    x = torch.randn(2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"backend='none': expected one of .*native"):
        normalize(x, lambda mean, var: (mean, var, var), [], backend="none")


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 2, 2, 2), (4, 5, 2, 2)], ids=str)
@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_a_wrong_input_shape_is_an_error(
    layer_class: type[MomentNorm2d], shape: tuple[int, ...], training: bool
) -> None:
    layer = layer_class(6).train(training)
    with pytest.raises(ValueError, match=rf"{layer_class.__name__} got .* expected \[N, 6, H, W\]"):
        layer(torch.randn(shape))


def test_a_batch_that_replicas_do_not_divide_is_an_error() -> None:
    layer = SwitchNorm2d(6)
    set_replicas(layer, 4)
    with pytest.raises(ValueError, match="6 samples cannot be divided evenly into 4 statistics"):
        layer(torch.randn(6, 6, 2, 2))


@pytest.mark.parametrize("layer_class", [BatchNorm2d, SwitchNorm2d])
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_batch_average_equals_numpys(layer_class: type[MomentNorm2d], replicas: int) -> None:
    network = nn.Sequential(layer_class(6), nn.ReLU(), layer_class(6)).double()
    set_replicas(network, replicas)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    rng = np.random.default_rng(0)
    batches = [rng.normal(2, 3, (4, 6, 3, 2)) + rng.normal(size=(1, 6, 1, 1)) for _ in range(3)]
    with collect_batch_averages(network) as averages, torch.no_grad():
        for x in batches:
            network(torch.from_numpy(x))
    assert list(averages) == ["0", "2"]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(layer.replicas.average is None for layer in norm_layers(network).values())

    minibatches = [x[r::replicas] for x in batches for r in range(replicas)]
    means = np.stack([x.mean((0, 2, 3)) for x in minibatches])
    variances = np.stack([x.var((0, 2, 3)) for x in minibatches])
    mean, var = averages["0"].statistics("mean_of_variances")
    np.testing.assert_allclose(mean, means.mean(0), rtol=1e-12)
    np.testing.assert_allclose(var, variances.mean(0), rtol=1e-12)
    mean, var = averages["0"].statistics("population")
    np.testing.assert_allclose(mean, means.mean(0), rtol=1e-12)
    np.testing.assert_allclose(var, np.concatenate(batches).var((0, 2, 3)), rtol=1e-12)


def test_the_population_variance_of_large_means_is_exact() -> None:
    average = BatchAverage(1, torch.device("cpu"))
    average.add(torch.tensor([[1000.0], [1002.0]]), torch.tensor([[1e-2], [3e-2]]))
    assert average.statistics("population")[1].item() == pytest.approx(1.02)


def test_an_empty_average_and_an_unknown_estimator_are_errors() -> None:
    average = BatchAverage(2, torch.device("cpu"))
    with pytest.raises(ValueError, match="no minibatch"):
        average.statistics("population")
    average.add(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="estimator='median'"):
        average.statistics("median")


def test_methods_without_stored_statistics_collect_no_averages() -> None:
    network = nn.Sequential(GroupNorm2d(6), SwitchNorm2d(6, omega=("in", "ln")))
    with collect_batch_averages(network) as averages:
        network(torch.randn(2, 6, 2, 2))
    assert averages == {}


def test_stored_statistics_are_used_only_inside_the_context() -> None:
    network = nn.Sequential(BatchNorm2d(6), SwitchNorm2d(6), GroupNorm2d(6))
    network(torch.randn(4, 6, 2, 2))
    network.eval()
    x = torch.randn(4, 6, 2, 2)
    before, state = network(x), {k: v.clone() for k, v in network.state_dict().items()}
    statistics = {
        "0": (torch.full((6,), 2.0).double(), torch.full((6,), 4.0).double()),
        "1": (torch.zeros(6).double(), torch.ones(6).double()),
    }
    with stored_statistics(network, statistics):
        torch.testing.assert_close(network[0](x), (x - 2) / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)

    with pytest.raises(RuntimeError, match="inside"), stored_statistics(network, statistics):
        raise RuntimeError("inside")
    with pytest.raises(KeyError), stored_statistics(network, {"0": statistics["0"]}):
        pass
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_a_used_layer_can_be_copied_pickled_and_loaded(layer_class: type[MomentNorm2d]) -> None:
    layer, loaded = layer_class(6), layer_class(6)
    randomize(layer)
    x = torch.randn(4, 6, 3, 3)
    layer(x).sum().backward()
    loaded.load_state_dict(layer.state_dict(), strict=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        torch.testing.assert_close(other.eval()(x), layer.eval()(x), rtol=0, atol=0)
