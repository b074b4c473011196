"""Dropout whose masks are a function of (seed, step, position in the global batch)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sn_imagenet.distributed import Placement
from sn_imagenet.models import PlacedDropout

FEATURES = 64


def dropped(
    placement: Placement, *, seed: int = 0, step: int = 0, p: float = 0.5, training: bool = True
) -> Tensor:
    """What reaches the layer of the rank's samples of ones, [global batch, F]; NaN for others'."""
    layer = nn.Identity().train(training)
    dropout = PlacedDropout(layer, p, seed)
    total = placement.gpus * placement.samples_per_gpu
    own = torch.arange(total)[placement.rank :: placement.world_size]
    whole = torch.full((total, FEATURES), torch.nan)
    for part in placement.microbatches(torch.ones(len(own), FEATURES), own):
        dropout.set_position(step, part.positions, total)
        whole[part.positions] = layer(part.images)
    return whole


@pytest.mark.parametrize("setting", [(8, 4), (1, 32)])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("per_pass", [None, 1])
def test_masks_do_not_depend_on_the_placement(
    setting: tuple[int, int], world_size: int, per_pass: int | None
) -> None:
    one = dropped(Placement(*setting))
    assert not one.isnan().any()
    together = torch.full_like(one, torch.nan)
    for rank in range(world_size):
        own = dropped(Placement(*setting, world_size, rank, per_pass))
        held = ~own.isnan()
        assert together[held].isnan().all()
        together[held] = own[held]
    assert together.equal(one)


def test_masks_differ_by_seed_step_sample_and_feature() -> None:
    placement = Placement(8, 4)
    one = dropped(placement)
    assert dropped(placement).equal(one)
    for other in (dropped(placement, seed=1), dropped(placement, step=1)):
        assert 0.4 < (other != one).float().mean() < 0.6
    assert len(one.unique(dim=0)) == len(one)
    assert len(one.unique(dim=1).T) == FEATURES


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_mean_is_kept(p: float) -> None:
    placement = Placement(8, 8)
    values = torch.stack([dropped(placement, step=step, p=p) for step in range(20)]).double()
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    # Of n draws of 0 or 1/(1-p), the standard deviation of the mean is sqrt(p / (1-p) / n).
    deviation = (p / (1 - p) / values.numel()) ** 0.5
    assert values.mean().item() == pytest.approx(1, abs=5 * deviation)


def test_nothing_is_dropped_in_evaluation() -> None:
    assert dropped(Placement(2, 2), training=False).equal(torch.ones(4, FEATURES))


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    dropped(Placement(2, 2))
    assert torch.get_rng_state().equal(state)


def test_gradients_are_masked_alike() -> None:
    layer = nn.Identity()
    dropout = PlacedDropout(layer, 0.5, 0)
    dropout.set_position(0, torch.arange(4), 4)
    x = torch.ones(4, FEATURES, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.equal(y.detach())
