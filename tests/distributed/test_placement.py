"""Assignment of the samples of a global batch to ranks, passes and replicas (design idea 2)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement
from sn_imagenet.distributed.placement import fitting_world_sizes
from sn_imagenet.errors import ConfigError, UserError


@st.composite
def placements(draw: st.DrawFn) -> list[Placement]:
    """The placements of all ranks, for a setting and a valid world size."""
    gpus, samples = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    world = draw(st.sampled_from(fitting_world_sizes(gpus, samples)))
    held = max(1, gpus // world)
    divisors = [k for k in range(1, held + 1) if held % k == 0]
    per_pass = draw(st.sampled_from([None, *divisors]))
    return [Placement(gpus, samples, world, rank, per_pass) for rank in range(world)]


def rank_batch(placement: Placement) -> tuple[torch.Tensor, torch.Tensor]:
    """The rank's samples as its loader yields them; the value of a sample is its position."""
    total = placement.gpus * placement.samples_per_gpu
    own = torch.arange(total)[placement.rank :: placement.world_size]
    return own[:, None, None, None].float(), own


@given(placements())
def test_each_sample_is_in_exactly_one_pass_with_its_replica(ranks: list[Placement]) -> None:
    gpus, samples = ranks[0].gpus, ranks[0].samples_per_gpu
    positions: list[int] = []
    first_replicas = 0
    for placement in ranks:
        images, labels = rank_batch(placement)
        assert len(labels) == placement.samples_per_rank
        parts = list(placement.microbatches(ImageBatch(images, labels)))
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        held: list[int] = []
        for part in parts:
            # Images, labels and positions stay together.
            assert part.batch.labels.equal(part.positions)
            assert part.batch.images.flatten().long().equal(part.positions)
            replica_of = part.positions % gpus
            # The layers expect that sample j of a pass belongs to its replica j mod replicas.
            by_replica = replica_of.view(-1, part.replicas)
            assert by_replica.equal(by_replica[:1].expand_as(by_replica))
            pass_replicas = by_replica[0].tolist()
            assert len(set(pass_replicas)) == part.replicas
            held += pass_replicas
            # Samples of a replica keep their order, as in one process per replica.
            columns = part.positions.view(-1, part.replicas)
            assert bool((columns[1:] > columns[:-1]).all())
            assert part.replica == pass_replicas[0]
            assert part.holds_first_replica == (placement.rank == 0 and 0 in pass_replicas)
            if part.holds_first_replica:
                first_replicas += 1
                assert pass_replicas[0] == 0, "running statistics follow the pass's first replica"
            positions += part.positions.tolist()
        assert len(held) == len(set(held)) == placement.replicas_per_rank
    assert first_replicas == 1
    assert sorted(positions) == list(range(gpus * samples))


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 300))
def test_an_invalid_world_size_is_an_error(gpus: int, samples: int, world: int) -> None:
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


def test_replicas_per_pass_must_divide_the_replicas_of_a_rank() -> None:
    with pytest.raises(UserError, match=r"replicas_per_pass=3: expected a divisor of the 4"):
        Placement(8, 2, world_size=2, replicas_per_pass=3)
    with pytest.raises(UserError, match=r"replicas_per_pass=2: expected a divisor of the 1"):
        Placement(1, 8, world_size=2, replicas_per_pass=2)
