"""Where samples go: design idea 2's deal of a global batch to ranks, passes and replicas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sn_imagenet.distributed import Placement, fitting_world_sizes, set_norm_replicas
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.norms import norm_layers
from sn_imagenet.norms.layers import BatchNorm2d


@st.composite
def placements(draw: st.DrawFn) -> list[Placement]:
    """All ranks' placements of some setting on some world that fits."""
    gpus, samples = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    world = draw(st.sampled_from(fitting_world_sizes(gpus, samples)))
    hosted = max(1, gpus // world)
    divisors = [k for k in range(1, hosted + 1) if hosted % k == 0]
    per_pass = draw(st.sampled_from([None, *divisors]))
    return [Placement(gpus, samples, world, rank, per_pass) for rank in range(world)]


def rank_batch(placement: Placement) -> tuple[torch.Tensor, torch.Tensor]:
    """The rank's samples as its loader yields them; a sample's values are its place."""
    total = placement.gpus * placement.samples_per_gpu
    own = torch.arange(total)[placement.rank :: placement.world_size]
    return own[:, None, None, None].float(), own


@given(placements())
def test_each_sample_is_in_one_pass_of_one_rank_with_its_replica(ranks: list[Placement]) -> None:
    gpus, samples = ranks[0].gpus, ranks[0].samples_per_gpu
    seen: list[int] = []
    first_replicas = 0
    for placement in ranks:
        images, labels = rank_batch(placement)
        assert len(labels) == placement.samples_per_rank
        parts = list(placement.microbatches(images, labels))
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        hosted: list[int] = []
        for part in parts:
            # Images, labels and positions stay together.
            assert part.labels.equal(part.positions)
            assert part.images.flatten().long().equal(part.positions)
            replica_of = part.positions % gpus
            # What the layers expect: sample j of a pass belongs to its replica j mod replicas.
            by_replica = replica_of.view(-1, part.replicas)
            assert by_replica.equal(by_replica[:1].expand_as(by_replica))
            names = by_replica[0].tolist()
            assert len(set(names)) == part.replicas
            hosted += names
            # In a replica samples keep their order, as in the process of its own.
            columns = part.positions.view(-1, part.replicas)
            assert bool((columns[1:] > columns[:-1]).all())
            assert part.holds_first_replica == (placement.rank == 0 and 0 in names)
            if part.holds_first_replica:
                first_replicas += 1
                assert names[0] == 0, "running statistics follow the pass's first replica"
            seen += part.positions.tolist()
        assert len(hosted) == len(set(hosted)) == placement.replicas_per_rank
    assert first_replicas == 1
    assert sorted(seen) == list(range(gpus * samples))


@given(placements())
def test_every_rank_has_as_many_samples_of_each_replica(ranks: list[Placement]) -> None:
    """What lets gradients be averaged and statistics be summed with equal weights."""
    for placement in ranks:
        for part in placement.microbatches(*rank_batch(placement)):
            counts = torch.bincount(part.positions % placement.gpus)
            held = counts[counts > 0]
            assert held.tolist() == [
                placement.samples_per_gpu // placement.ranks_per_replica
            ] * len(held)


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 300))
def test_a_world_fits_or_the_error_lists_those_that_do(gpus: int, samples: int, world: int) -> None:
    fits = gpus % world == 0 or (world % gpus == 0 and samples % (world // gpus) == 0)
    assert (world in fitting_world_sizes(gpus, samples)) == fits
    if fits:
        assert Placement(gpus, samples, world).samples_per_rank * world == gpus * samples
        return
    with pytest.raises(ConfigError) as caught:
        Placement(gpus, samples, world)
    message = str(caught.value)
    assert f"{world} processes" in message
    assert f"({gpus},{samples})" in message
    assert ", ".join(map(str, fitting_world_sizes(gpus, samples))) in message


def test_world_sizes_of_table_2() -> None:
    assert fitting_world_sizes(8, 2) == [1, 2, 4, 8, 16]
    assert fitting_world_sizes(8, 1) == [1, 2, 4, 8]
    assert fitting_world_sizes(1, 16) == [1, 2, 4, 8, 16]
    assert fitting_world_sizes(6, 3) == [1, 2, 3, 6, 18]


def test_replicas_per_pass_must_divide_the_hosted_ones() -> None:
    with pytest.raises(UserError, match=r"replicas_per_pass=3: expected a divisor of the 4"):
        Placement(8, 2, world_size=2, replicas_per_pass=3)
    with pytest.raises(UserError, match=r"replicas_per_pass=2: expected a divisor of the 1"):
        Placement(1, 8, world_size=2, replicas_per_pass=2)


def test_the_layers_are_told_of_a_pass() -> None:
    network = torch.nn.Sequential(BatchNorm2d(1), torch.nn.ReLU(), BatchNorm2d(1))
    placement = Placement(4, 2, replicas_per_pass=2)
    told = []
    for part in placement.microbatches(*rank_batch(placement)):
        set_norm_replicas(network, part, None)
        told += [
            (layer.replicas, layer.holds_first_replica, layer.process_group)
            for layer in norm_layers(network).values()
        ]
    # The first replica last, so that no pass sees running statistics that another has moved.
    assert told == [(2, False, None)] * 2 + [(2, True, None)] * 2


@pytest.mark.parametrize(
    ("placement", "line"),
    [
        (Placement(8, 2), "(8,2): 8 replicas of 2 samples on 1 process, 8 per process in 1 "
         "forward pass"),
        (Placement(8, 2, 2, 0, 2), "(8,2): 8 replicas of 2 samples on 2 processes, 4 per process "
         "in 2 forward passes"),
        (Placement(1, 8, 4), "(1,8): 1 replicas of 8 samples on 4 processes, each spanning 4 "
         "processes"),
    ],
)  # fmt: skip
def test_describes_itself(placement: Placement, line: str) -> None:
    assert placement.describe() == line


def test_a_replica_of_one_rank_needs_no_group() -> None:
    for world in (1, 2, 8):
        assert Placement(8, 2, world).replica_group() is None
    assert Placement(8, 2, 16).ranks_per_replica == 2
