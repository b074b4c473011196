"""Statistics groups across ranks: two gloo processes against one with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from norm_reference import BACKENDS, randomize
from torch import Tensor, nn

from sn_imagenet.norms import (
    BatchNorm2d,
    SwitchNorm2d,
    collect_batch_averages,
    norm_layers,
    set_replicas,
)

RANKS = 2
SAMPLES = 8


def network(backend: str | None) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        SwitchNorm2d(6, omega=("in", "ln", "bn", "gn"), num_groups=3),
        nn.Tanh(),
        nn.Conv2d(6, 4, 2),
        BatchNorm2d(4),
    ).double()
    randomize(net)
    net[1].backend = net[4].backend = backend
    net[4].relu = True
    return net


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 3, 6, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(SAMPLES, 4, 3, 2, generator=generator, dtype=torch.float64)


def step(net: nn.Module, x: Tensor, direction: Tensor) -> dict[str, Any]:
    with collect_batch_averages(net) as averages:
        net(x)
    x = x.clone().requires_grad_()
    y = net(x)
    (y * direction).sum().backward()
    collected = {k: v.statistics("population") for k, v in averages.items()}
    return {
        "y": y.detach(),
        "x_grad": x.grad,
        "grads": {k: p.grad for k, p in net.named_parameters()},
        "buffers": dict(net.named_buffers()),
        "averages": {k: (v[0].detach(), v[1].detach()) for k, v in collected.items()},
    }


def rank_main(rank: int, replicas: int, backend: str | None, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=RANKS)
    try:
        net = network(backend)
        set_replicas(net, replicas, process_group=dist.group.WORLD)
        x, direction = batch()
        # Consecutive slices of the batch: with R groups per rank, sample j belongs to group j mod R
        # in each slice, as in the whole batch.
        local = slice(rank * SAMPLES // RANKS, (rank + 1) * SAMPLES // RANKS)
        result = step(net, x[local], direction[local])
        for grad in result["grads"].values():
            dist.all_reduce(grad)
        torch.save(result, f"{directory}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def check_two_ranks(replicas: int, backend: str | None, directory: Path) -> None:
    net = network("native")
    set_replicas(net, replicas)
    expected = step(net, *batch())
    mp.spawn(rank_main, args=(replicas, backend, str(directory)), nprocs=RANKS)
    ranks = [torch.load(directory / f"rank{rank}.pt") for rank in range(RANKS)]
    exact = {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(torch.cat([r["y"] for r in ranks]), expected["y"], **exact)
    torch.testing.assert_close(torch.cat([r["x_grad"] for r in ranks]), expected["x_grad"], **exact)
    for result in ranks:
        for key in ("grads", "buffers", "averages"):
            torch.testing.assert_close(result[key], expected[key], **exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_replica_on_two_ranks_equals_one_process_with_the_whole_batch(
    tmp_path: Path, replicas: int, backend: str
) -> None:
    """Statistics are combined by autograd (native) or in closed form (cpp)."""
    check_two_ranks(replicas, backend, tmp_path)


def test_a_process_group_of_one_rank_changes_nothing(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer, single = BatchNorm2d(3), BatchNorm2d(3)
        set_replicas(layer, process_group=dist.group.WORLD)
        x = torch.randn(2, 3, 1, 1)
        torch.testing.assert_close(layer(x), single(x))
        torch.testing.assert_close(layer.running_var, single.running_var)
    finally:
        dist.destroy_process_group()
    assert list(norm_layers(layer)) == [""]
