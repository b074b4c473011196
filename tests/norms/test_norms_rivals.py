"""The rivals of SN against their papers' formulas in float64, written independently."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from norm_reference import BACKENDS, activation, fig7, gradients, randomize
from test_norms_formula import check_gradients
from torch import Tensor, nn

from sn_imagenet.norms import (
    BatchInstanceNorm2d,
    BatchNorm2d,
    ExtendedBatchNorm2d,
    FilterResponseNorm2d,
    GroupNorm2d,
    MeanOnlyBatchNorm2d,
    MomentNorm2d,
    SparseSwitchNorm2d,
    WeightNorm2d,
    collect_batch_averages,
    convert_norm,
    evalnorm,
    set_replicas,
    stored_statistics,
)
from sn_imagenet.norms.rivals import sparsestmax

Statistics = tuple[Tensor, Tensor]


def moments(x: Tensor, *dims: int) -> Statistics:
    mean = x.mean(dims, keepdim=True)
    return mean, ((x - mean) ** 2).mean(dims, keepdim=True)


def per_channel(parameter: Tensor) -> Tensor:
    return parameter.view(1, -1, 1, 1)


def sparse_switch(x: Tensor, layer: SparseSwitchNorm2d, batch: Statistics) -> Tensor:
    """With weights that need no projection: the sparsemax, moved to the sphere of the radius."""
    members = moments(x, 2, 3), moments(x, 1, 2, 3), batch
    combined = []
    for kind, logits in enumerate((layer.mean_weight, layer.var_weight)):
        weights = logits - (logits.sum() - 1) / 3  # all three are in the support
        distance = (weights - 1 / 3).square().sum().sqrt()
        assert weights.min() > 0 and distance < layer.radius
        weights = 1 / 3 + (weights - 1 / 3) * layer.radius / distance
        assert weights.min() > 0
        combined.append(sum(w * m[kind] for w, m in zip(weights, members, strict=True)))
    mean, var = combined
    y = (x - mean) / (var + layer.eps).sqrt()
    return y * per_channel(layer.weight) + per_channel(layer.bias)


def batch_instance(x: Tensor, layer: BatchInstanceNorm2d, batch: Statistics) -> Tensor:
    rho = per_channel(layer.rho)
    by_batch, by_instance = (
        (x - mean) / (var + layer.eps).sqrt() for mean, var in (batch, moments(x, 2, 3))
    )
    y = rho * by_batch + (1 - rho) * by_instance
    return y * per_channel(layer.weight) + per_channel(layer.bias)


def filter_response(x: Tensor, layer: FilterResponseNorm2d, batch: Statistics) -> Tensor:
    nu = (x**2).mean((2, 3), keepdim=True)
    y = x / (nu + layer.eps).sqrt() * per_channel(layer.weight) + per_channel(layer.bias)
    return y if layer.tau is None else torch.maximum(y, per_channel(layer.tau))


def extended(x: Tensor, layer: ExtendedBatchNorm2d, batch: Statistics) -> Tensor:
    mean, var = batch
    if layer.training:
        var = ((x - x.mean()) ** 2).mean()
    else:  # of all channels together, from those of each
        var = (var + mean**2).mean() - mean.mean() ** 2
    y = (x - mean) / (var + layer.eps).sqrt()
    return y * per_channel(layer.weight) + per_channel(layer.bias)


def mean_only(x: Tensor, layer: MomentNorm2d, batch: Statistics) -> Tensor:
    return x - batch[0] + per_channel(layer.bias)


def bias_only(x: Tensor, layer: WeightNorm2d, batch: Statistics) -> Tensor:
    return x + per_channel(layer.bias)


def with_threshold(*arguments: object, **options: object) -> FilterResponseNorm2d:
    layer = FilterResponseNorm2d(*arguments, **options)
    layer.relu = True
    return layer


def with_mean_only(*arguments: object, **options: object) -> WeightNorm2d:
    return WeightNorm2d(*arguments, mean_only_bn=True, **options)


Formula = Callable[[Tensor, MomentNorm2d, Statistics], Tensor]
METHODS: dict[str, tuple[Callable[..., MomentNorm2d], Formula]] = {
    "ssn": (SparseSwitchNorm2d, sparse_switch),
    "bin": (BatchInstanceNorm2d, batch_instance),
    "frn": (FilterResponseNorm2d, filter_response),
    "frn and tlu": (with_threshold, filter_response),
    "ebn": (ExtendedBatchNorm2d, extended),
    "mean_bn": (MeanOnlyBatchNorm2d, mean_only),
    "wn": (WeightNorm2d, bias_only),
    "wn and mean_bn": (with_mean_only, mean_only),
}


def make_layer(method: str, channels: int) -> MomentNorm2d:
    layer = METHODS[method][0](channels, dtype=torch.float64)
    randomize(layer)
    with torch.no_grad():
        if isinstance(layer, SparseSwitchNorm2d):
            layer.radius.fill_(0.3)
            layer.mean_weight.copy_(torch.tensor([0.3, 0.4, 0.2]))
            layer.var_weight.copy_(torch.tensor([1.1, 1.0, 0.95]))
        if isinstance(layer, BatchInstanceNorm2d):
            layer.rho.copy_(torch.linspace(0, 1, channels))
    return layer


def assert_equal(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    ours, theirs = gradients(actual, inputs), gradients(expected, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", [*BACKENDS, "formula"])
@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_equals_its_formula(method: str, replicas: int, backend: str) -> None:
    x = activation(8, 6, 3, 5)
    layer = make_layer(method, 6)
    layer.backend = backend
    set_replicas(layer, replicas)
    expected = torch.empty_like(x)
    for r in range(replicas):
        samples = x[r::replicas]
        expected[r::replicas] = METHODS[method][1](samples, layer, moments(samples, 0, 2, 3))
    assert_equal(layer(x), expected, [x, *layer.parameters()])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_residual_and_a_relu(method: str, backend: str) -> None:
    x, residual = activation(4, 6, 3, 5), activation(4, 6, 3, 5, seed=5)
    layer = make_layer(method, 6)
    layer.backend = backend
    formula = METHODS[method][1]
    if method == "frn and tlu":
        tau, layer.tau = layer.tau, None
        expected = formula(x, layer, moments(x, 0, 2, 3)) + residual
        expected, layer.tau = torch.maximum(expected, per_channel(tau)), tau
    else:
        expected = (formula(x, layer, moments(x, 0, 2, 3)) + residual).relu()
        layer.relu = True  # frn's own threshold is initially 0
    inputs = [x, residual, *(p for n, p in layer.named_parameters() if n != "tau")]
    assert_equal(layer(x, residual), expected, inputs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_passes_gradcheck(method: str, training: bool) -> None:
    check_gradients(make_layer(method, 4).train(training))


@pytest.mark.parametrize("method", METHODS)
def test_calibration_and_evaluation(method: str) -> None:
    """The batch average is that of BN, and evaluation uses it in the place of the batch's."""
    layer = make_layer(method, 6)
    set_replicas(layer, 2)
    batches = [activation(8, 6, 3, 5, seed=seed) for seed in range(3)]
    with torch.no_grad(), collect_batch_averages(layer) as averages:
        for batch in batches:
            layer(batch)
    groups = [moments(batch[r::2], 0, 2, 3) for batch in batches for r in range(2)]
    mean, var = (torch.stack(tables).mean(0) for tables in zip(*groups, strict=True))
    x = activation(5, 6, 2, 2)
    set_replicas(layer)
    if not layer.stores_statistics:
        assert not averages and list(layer.buffers()) == []
        torch.testing.assert_close(layer.eval()(x[:1]), layer.train()(x)[:1])
        return
    (average,) = averages.values()
    statistics = average.statistics("mean_of_variances")
    torch.testing.assert_close(statistics, (mean.flatten(), var.flatten()))
    layer.eval()
    with stored_statistics(layer, {"": statistics}):
        torch.testing.assert_close(layer(x), METHODS[method][1](x, layer, (mean, var)))


@pytest.mark.parametrize("method", METHODS)
def test_a_state_dict_holds_all_that_decides_the_output(method: str) -> None:
    layer, other = make_layer(method, 6), METHODS[method][0](6, dtype=torch.float64)
    for step in range(3):
        layer(activation(4, 6, 3, 5, seed=step))
        layer.after_step(step / 10)
    other.load_state_dict(layer.state_dict())
    x = activation(4, 6, 3, 5)
    assert torch.equal(other(x), layer(x)) and torch.equal(other.eval()(x), layer.eval()(x))


def closest_to(point: list[float], radius: float) -> list[float]:
    """Sparsestmax of three members by brute force: of the weights outside the sphere, the sparsemax
    or those on the sphere in its direction; on an edge, the point on the sphere on its side."""
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    simplex = torch.stack([first, second, 1 - first - second], -1).flatten(0, 1)
    simplex = simplex[simplex[:, 2] >= 0]
    center = torch.full((3,), 1 / 3, dtype=torch.float64)

    def project(p: Tensor) -> Tensor:
        return simplex[(simplex - p).square().sum(1).argmin()]

    weights = project(torch.tensor(point, dtype=torch.float64))
    if (weights - center).norm() < radius:
        weights = center + (weights - center) / (weights - center).norm() * radius
        if weights.min() < 0:
            edge = (project(weights) > 0).double()
            if edge.sum() == 1:  # a vertex
                return edge.tolist()
            offset = (project(weights) - edge / edge.sum()) * edge
            reach = math.sqrt(max(0.0, radius**2 - 1 / 6))
            moved = edge / edge.sum() + offset / offset.norm() * max(reach, float(offset.norm()))
            weights = project(moved)
    return weights.tolist()


@pytest.mark.parametrize("radius", [0.0, 0.1, 0.3, 0.5, 0.65, 0.8, 0.82, 1.0])
def test_sparsestmax(radius: float) -> None:
    for logits in ([1.0, 1.2, 0.9], [0.5, 0.3, 0.45], [2.0, 0.3, 1.6], [5.0, 1.0, 1.0]):
        weights = sparsestmax(torch.tensor(logits).double(), torch.tensor(radius).double())
        assert weights.tolist() == pytest.approx(closest_to(logits, radius), abs=4e-3)
        assert weights.sum().item() == pytest.approx(1)
        if radius > math.sqrt(2 / 3):
            assert (weights > 0).sum() == 1 and weights.argmax() == torch.tensor(logits).argmax()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_sparsestmax_with_a_radius_of_0_is_sparsemax_and_with_1_a_choice(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for _ in range(20):
        logits = torch.rand(count, generator=generator, dtype=torch.float64)
        weights = sparsestmax(logits, torch.tensor(0.0, dtype=torch.float64))
        # The optimality condition: the weights above 0 differ as the logits do.
        support = weights > 0
        assert torch.allclose(weights[support] - logits[support], (weights - logits)[support][0])
        assert (logits[~support] <= (logits - weights)[support].amax()).all()
        chosen = sparsestmax(logits, torch.tensor(1.0, dtype=torch.float64))
        assert chosen.argmax() == logits.argmax() and (chosen > 0).sum() == 1


def test_a_choice_of_ssn_is_fixed() -> None:
    layer = SparseSwitchNorm2d(6)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([1.0, 1.01, 1.0]))
    assert layer.importance_weights()["mean"]["ln"] == pytest.approx(1 / 3, abs=0.01)
    layer.after_step(0.5)
    assert 0.4 < layer.importance_weights()["mean"]["ln"] < 0.9
    assert layer.importance_weights()["variance"]["ln"] == pytest.approx(1 / 3)  # no direction yet
    layer.after_step(0.9)
    assert layer.importance_weights()["mean"] == {"in": 0.0, "ln": 1.0, "bn": 0.0}
    layer(torch.randn(4, 6, 3, 3)).square().sum().backward()
    assert layer.mean_weight.grad.count_nonzero() == 0
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    with torch.no_grad():
        layer.mean_weight.sub_(torch.tensor([0.0, 0.5, 0.0]))  # momentum of earlier steps
    layer.after_step(0.91)
    assert layer.importance_weights()["mean"]["ln"] == 1


def test_rho_is_clamped_after_a_step() -> None:
    layer = BatchInstanceNorm2d(3)
    with torch.no_grad():
        layer.rho.copy_(torch.tensor([-0.1, 0.5, 1.1]))
    layer.after_step(0.0)
    assert layer.rho.tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_evalnorm_mixes_the_samples_own_and_the_stored_statistics(weight: float) -> None:
    network = nn.Sequential(BatchNorm2d(6), GroupNorm2d(6)).double()
    for seed in range(3):
        network(activation(4, 6, 3, 5, seed=seed))
    network.eval()
    layer, x = network[0], activation(4, 6, 3, 5)
    plain = network(x)
    with evalnorm(network, weight):
        y = network(x)
    own = moments(x, 2, 3)
    stored = per_channel(layer.running_mean), per_channel(layer.running_var)
    mean, var = (weight * a + (1 - weight) * b for a, b in zip(own, stored, strict=True))
    expected = network[1]((x - mean) / (var + layer.eps).sqrt())
    torch.testing.assert_close(y, expected)
    assert torch.equal(network(x), plain)
    with pytest.raises(ValueError, match="EvalNorm evaluates batch norm"), evalnorm(network[1], 1):
        pass


def test_weight_norm_is_not_a_replacement_of_batch_norms_alone() -> None:
    with pytest.raises(ValueError, match="WeightNorm2d changes the convolutions too"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(3)), "wn")
    network = nn.Sequential(BatchNorm2d(3))
    network[0].relu = True
    convert_norm(network, "frn")
    assert network[0].tau.tolist() == [0, 0, 0]


def test_equal_logits_are_fig_7_at_every_radius() -> None:
    x, layer = activation(4, 6, 3, 5), SparseSwitchNorm2d(6).double()
    logits = layer.mean_weight, layer.var_weight
    layer.radius.fill_(0.9)
    torch.testing.assert_close(layer(x), fig7(x, layer.weight, layer.bias, *logits))
