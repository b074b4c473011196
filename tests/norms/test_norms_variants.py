"""Batch renorm, frozen and synchronized batch norm, 1D and 3D switchable norm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from norm_reference import BACKENDS, fig7, gradients, randomize
from torch import Tensor, nn

from sn_imagenet.norms import (
    BatchNorm2d,
    BatchRenorm2d,
    FrozenBatchNorm2d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncBatchNorm2d,
    collect_batch_averages,
    set_replicas,
    stored_statistics,
)


def activation(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1


def renorm(x: Tensor, layer: BatchRenorm2d, r_max: float, d_max: float) -> Tensor:
    """Ioffe 2017, Algorithm 1."""
    mean = x.mean((0, 2, 3), keepdim=True)
    std = (layer.eps + ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)).sqrt()
    stored_mean = layer.running_mean.view(1, -1, 1, 1)
    stored_std = (layer.running_var.view(1, -1, 1, 1) + layer.eps).sqrt()
    r = (std.detach() / stored_std).clamp(1 / r_max, r_max)
    d = ((mean.detach() - stored_mean) / stored_std).clamp(-d_max, d_max)
    normal = (x - mean) / std * r + d
    return normal * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_renorm_equals_algorithm_1(backend: str) -> None:
    layer = BatchRenorm2d(6, warmup_steps=1, r_steps=5, d_steps=3).double()
    layer.backend = backend
    randomize(layer)
    limits = []
    for step in range(8):
        x = activation(4, 6, 3, 2, seed=step).requires_grad_()
        r_max = 1 + 0.5 * min(max((step - 1) / 4, 0), 1)
        d_max = 0.5 * min(max((step - 1) / 2, 0), 1)
        limits.append(tuple(float(limit) for limit in layer.limits()))
        assert limits[-1] == pytest.approx((r_max, d_max))
        expected = renorm(x, layer, r_max, d_max)
        inputs = [x, layer.weight, layer.bias]
        expected_gradients = gradients(expected, inputs)
        y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradients(y, inputs), expected_gradients, rtol=1e-9, atol=1e-10)
    assert limits[0] == (1.0, 0.0) and limits[-1] == (1.5, 0.5)


def test_batch_renorm_equals_batch_norm_during_warmup_and_in_evaluation() -> None:
    ours, theirs = BatchRenorm2d(6).double(), nn.BatchNorm2d(6).double()
    for step in range(3):
        x = activation(4, 6, 3, 2, seed=step)
        torch.testing.assert_close(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_batch_renorm_corrects_all_replicas_by_the_same_running_statistics() -> None:
    layer = BatchRenorm2d(6, warmup_steps=0, r_steps=0, d_steps=0).double()
    layer(activation(4, 6, 3, 2))
    x = activation(8, 6, 3, 2, seed=1)
    expected = [renorm(x[r::2], layer, 1.5, 0.5) for r in range(2)]
    set_replicas(layer, 2)
    y = layer(x)
    for r in range(2):
        torch.testing.assert_close(y[r::2], expected[r])


@pytest.mark.parametrize(
    "arguments",
    [{"track_running_stats": False}, {"r_max": 0.9}, {"d_max": -1}, {"r_steps": 10}],
    ids=str,
)
def test_wrong_arguments_of_batch_renorm_are_errors(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="|".join(arguments)):
        BatchRenorm2d(6, **arguments)


def test_frozen_batch_norm_does_not_change() -> None:
    trained = nn.BatchNorm2d(6).double()
    randomize(trained)
    trained(activation(4, 6, 3, 2))
    frozen = FrozenBatchNorm2d(6).double()
    frozen.load_state_dict(trained.state_dict(), strict=True)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    x = activation(4, 6, 3, 2, seed=1).requires_grad_()
    expected = trained.eval()(x)
    y = frozen.train()(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, [x]), gradients(expected, [x]))
    assert not any(p.requires_grad for p in frozen.parameters())
    with collect_batch_averages(frozen) as averages, stored_statistics(frozen, {}):
        frozen(x)
    assert averages == {}
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())


def test_sync_batch_norm_ignores_replicas() -> None:
    ours, theirs = SyncBatchNorm2d(6).double(), nn.BatchNorm2d(6).double()
    set_replicas(ours, 4)
    x = activation(8, 6, 3, 2)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


def sync_main(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=2)
    try:
        layer = SyncBatchNorm2d(6).double()
        set_replicas(layer, 2)
        x = activation(8, 6, 3, 2)[rank::2].clone().requires_grad_()
        y = layer(x)
        (y * activation(8, 6, 3, 2, seed=1)[rank::2]).sum().backward()
        torch.save((y.detach(), x.grad, layer.state_dict()), f"{directory}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_sync_batch_norm_spans_the_ranks(tmp_path: Path) -> None:
    mp.spawn(sync_main, args=(str(tmp_path),), nprocs=2)
    layer, x = nn.BatchNorm2d(6).double(), activation(8, 6, 3, 2).requires_grad_()
    y = layer(x)
    (y * activation(8, 6, 3, 2, seed=1)).sum().backward()
    for rank in range(2):
        output, grad, state = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(output, y[rank::2])
        torch.testing.assert_close(grad, x.grad[rank::2])
        torch.testing.assert_close(state["running_var"], layer.running_var)


@pytest.mark.parametrize(
    ("layer_class", "shape"),
    [(SwitchNorm1d, (4, 6)), (SwitchNorm1d, (4, 6, 5)), (SwitchNorm3d, (4, 6, 2, 3, 5))],
    ids=str,
)
def test_1d_and_3d_equal_fig_7(layer_class: type[SwitchNorm2d], shape: tuple[int, ...]) -> None:
    layer = layer_class(6).double()
    randomize(layer)
    x = activation(*shape).requires_grad_()
    parameters = [layer.weight, layer.bias, layer.mean_weight, layer.var_weight]
    expected = fig7(x.reshape(4, 6, 1, -1), *parameters).view(shape)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    inputs = [x, *parameters]
    torch.testing.assert_close(gradients(y, inputs), gradients(expected, inputs))


def test_the_3d_layer_keeps_channels_last_3d() -> None:
    x = activation(2, 6, 2, 3, 5).contiguous(memory_format=torch.channels_last_3d)
    layer = SwitchNorm3d(6).double()
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(y, SwitchNorm3d(6).double()(x.contiguous()))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (SwitchNorm1d(6), r"SwitchNorm1d got .* expected \[N, 6\] or \[N, 6, L\]"),
        (SwitchNorm3d(6), r"SwitchNorm3d got .* expected \[N, 6, D, H, W\]"),
    ],
)
def test_wrong_dimensions_are_errors(layer: SwitchNorm2d, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        layer(torch.randn(2, 6, 3, 3))


def test_batch_renorm_collects_batch_averages() -> None:
    network = nn.Sequential(BatchRenorm2d(6), BatchNorm2d(6)).double()
    with collect_batch_averages(network) as averages:
        network(activation(4, 6, 3, 2))
    assert list(averages) == ["0", "1"]
