"""The batch average (recalibrated statistics) against a NumPy computation, on real digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from process_groups import run_programs
from torch import Tensor, nn

from sn_imagenet.config import CalibrationConfig, ExperimentConfig, from_dict
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.seeding import Key, epoch_order
from sn_imagenet.distributed import init_distributed, rank
from sn_imagenet.evaluation import calibrate
from sn_imagenet.norms import (
    BatchNorm2d,
    Replicas,
    SwitchNorm2d,
    SyncBatchNorm2d,
    norm_layers,
    set_replicas,
)
from sn_imagenet.session import session
from sn_imagenet.tasks import Prepared, prepare
from sn_imagenet.tasks.classification.dropout import PlacedDropout

SAMPLES = 4  # per replica
DIGITS = ("data=digits", "model=resnet14_mini", "batch=1x4", "data.workers=0")
REQUESTED = 50  # 12 minibatches; the last two samples fill none
Tables = dict[str, tuple[Tensor, Tensor]]
Compose = Callable[..., ExperimentConfig]


class ToDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def network() -> nn.Sequential:
    """1 x 1 convolutions, one line in NumPy each, and dropout, which must be off."""
    torch.manual_seed(0)
    net = nn.Sequential(
        ToDouble(),
        nn.Conv2d(3, 5, 1),
        BatchNorm2d(5),
        nn.Dropout(0.5),
        nn.ReLU(),
        nn.Conv2d(5, 7, 1),
        SwitchNorm2d(7),
        nn.Flatten(),
        nn.Linear(7 * 16 * 16, 10),
    ).double()
    dropout = PlacedDropout(net[-1], 0.5, seed=0)
    dropout.set_position(0, torch.arange(SAMPLES), SAMPLES)  # as after training
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return net


def sync_network() -> nn.Sequential:
    """The same with statistics over all replicas: a minibatch is the run's global batch."""
    net, sync = network(), SyncBatchNorm2d(5).double()
    sync.load_state_dict(net[2].state_dict())
    net[2] = sync
    return net


def calibrated(
    net: nn.Module, prepared: Prepared, batch_size: int = 64, **options: Any
) -> tuple[Tables, dict[str, Any]]:
    ((statistics, info),) = calibrate(prepared_with(net, prepared, batch_size, **options))
    return dict(statistics), info


def prepared_with(net: nn.Module, prepared: Prepared, batch_size: int, **options: Any) -> Prepared:
    options = {"samples": REQUESTED, "estimator": "mean_of_variances", "seed": 3, **options}
    config = replace(
        prepared.config,
        trainer=replace(prepared.config.trainer, eval_batch_size=batch_size),
        calibration=CalibrationConfig(**options),
    )
    return replace(prepared, config=config, network=net)


def expected_statistics(net: nn.Sequential, prepared: Prepared, estimator: str) -> Any:
    """{layer: (mean, var)}, one minibatch after the other, in float64 NumPy."""
    train = prepared.data.train
    w1, b1 = (t.detach().numpy() for t in (net[1].weight[:, :, 0, 0], net[1].bias))
    w2, b2 = (t.detach().numpy() for t in (net[5].weight[:, :, 0, 0], net[5].bias))
    gamma, beta = (t.detach().numpy() for t in (net[2].weight, net[2].bias))
    order = epoch_order(len(train), 3, -1 - 3).tolist()
    inputs: dict[str, list[np.ndarray]] = {"2": [], "6": []}
    for start in range(0, REQUESTED - SAMPLES + 1, SAMPLES):
        keys = [Key(-1 - 3, index) for index in order[start : start + SAMPLES]]
        x = np.stack([train[key][0].double().numpy() for key in keys])
        x = np.einsum("oc,nchw->nohw", w1, x) + b1[:, None, None]
        inputs["2"].append(x)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        x = (x - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
        x = np.maximum(x * gamma[:, None, None] + beta[:, None, None], 0)
        inputs["6"].append(np.einsum("oc,nchw->nohw", w2, x) + b2[:, None, None])
    expected = {}
    for name, minibatches in inputs.items():
        assert len(minibatches) == 12
        mean = np.mean([x.mean((0, 2, 3)) for x in minibatches], axis=0)
        if estimator == "mean_of_variances":
            var = np.mean([x.var((0, 2, 3)) for x in minibatches], axis=0)
        else:
            var = np.concatenate(minibatches).var((0, 2, 3))
        expected[name] = (mean, var)
    return expected


@pytest.fixture(scope="module")
def prepared(composed: Compose) -> Prepared:
    return prepare(composed(*DIGITS))


def assert_close(actual: Tables, expected: Any) -> None:
    assert actual.keys() == expected.keys()
    for name, (mean, var) in expected.items():
        np.testing.assert_allclose(actual[name][0], mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(actual[name][1], var, rtol=1e-11)


@pytest.mark.parametrize("estimator", ["mean_of_variances", "population"])
@pytest.mark.parametrize("batch_size", [1, 8, 12, 1000])
def test_statistics_equal_numpys(prepared: Prepared, estimator: str, batch_size: int) -> None:
    """For every batch size of the passes. Dropout is off; both layers use batch statistics."""
    net = network()
    actual, info = calibrated(net, prepared, batch_size, estimator=estimator)
    assert_close(actual, expected_statistics(net, prepared, estimator))
    assert info == {
        "estimator": estimator,
        "samples_requested": REQUESTED,
        "samples_used": 48,
        "samples_per_replica": SAMPLES,
        "seed": 3,
    }


@pytest.mark.parametrize("batch_size", [1, 8, 1000])
def test_synchronized_layers_average_over_global_batches(
    prepared: Prepared, batch_size: int
) -> None:
    actual, _ = calibrated(sync_network(), prepared, batch_size)
    assert_close(actual, expected_statistics(network(), prepared, "mean_of_variances"))


def test_seed_and_samples_choose_the_minibatches(prepared: Prepared) -> None:
    net = network()
    default, _ = calibrated(net, prepared)
    assert not torch.equal(default["2"][0], calibrated(net, prepared, seed=4)[0]["2"][0])
    all_samples, info = calibrated(net, prepared, samples="all")
    assert (info["samples_requested"], info["samples_used"]) == ("all", 1397 // SAMPLES * SAMPLES)
    assert not torch.equal(default["2"][0], all_samples["2"][0])
    too_many, info = calibrated(net, prepared, samples=50_000)
    assert (info["samples_requested"], info["samples_used"]) == (50_000, 1396)
    torch.testing.assert_close(too_many, all_samples, rtol=0, atol=0)
    with pytest.raises(DataError, match=r"calibration\.samples=3.*minibatch of 4"):
        calibrated(net, prepared, samples=3)


def test_calibration_does_not_change_the_network(prepared: Prepared) -> None:
    net = network()
    set_replicas(net, 3, holds_first_replica=True)  # as after training
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    calibrated(net, prepared)
    for name, tensor in net.state_dict().items():
        assert tensor.equal(before[name]), name
    assert not any(module.training for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    for layer in norm_layers(net).values():
        assert layer.replicas == Replicas()


def calibrate_as_program(values: dict[str, Any], folder: str) -> None:
    with session():
        init_distributed()
        prepared = prepare(from_dict(values))
        for estimator in ("mean_of_variances", "population"):
            actual, info = calibrated(network(), prepared, 8, estimator=estimator)
            torch.save((actual, info), f"{folder}/{estimator}{rank()}.pt")
        # Three minibatches in total: the second rank has one batch fewer than the first.
        torch.save(
            calibrated(sync_network(), prepared, 4, samples=13)[0], f"{folder}/sync{rank()}.pt"
        )
        # One minibatch in total: the second rank has none.
        torch.save(calibrated(network(), prepared, 8, samples=5)[0], f"{folder}/one{rank()}.pt")


def test_two_processes_compute_the_same_statistics(
    composed: Compose, prepared: Prepared, tmp_path: Path
) -> None:
    values = composed(*DIGITS).to_dict()
    for rank_result in run_programs(2, calibrate_as_program, tmp_path, values, str(tmp_path)):
        assert rank_result.code == 0, rank_result.err
    for number in (0, 1):
        for estimator in ("mean_of_variances", "population"):
            actual, info = torch.load(tmp_path / f"{estimator}{number}.pt")
            assert_close(actual, expected_statistics(network(), prepared, estimator))
            assert info["samples_used"] == 48
        sync = torch.load(tmp_path / f"sync{number}.pt")
        assert_close(sync, calibrated(network(), prepared, samples=13)[0])
        one = torch.load(tmp_path / f"one{number}.pt")
        torch.testing.assert_close(one, calibrated(network(), prepared, samples=5)[0])


@pytest.mark.parametrize("batch_size", [SAMPLES, 64])
def test_one_pass_for_several_sample_counts(prepared: Prepared, batch_size: int) -> None:
    """Each result equals its own calibration up to rounding of sums; each sample is read once."""
    net, batch_sizes = network(), []
    net.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0])))
    requested = [REQUESTED, 3 * SAMPLES, SAMPLES]
    results = calibrate(prepared_with(net, prepared, batch_size, samples="all"), requested)
    assert [info["samples_requested"] for _, info in results] == sorted(requested)
    assert sum(batch_sizes) == results[-1][1]["samples_used"]
    for statistics, info in results:
        expected, own_info = calibrated(network(), prepared, samples=info["samples_requested"])
        assert info == own_info
        for name, tables in expected.items():
            for a, b in zip(statistics[name], tables, strict=True):
                assert a.numpy() == pytest.approx(b.numpy(), rel=1e-9)
