"""Dropout masks are a function of (seed, step, position in the global batch)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement
from sn_imagenet.tasks.classification.dropout import PlacedDropout

FEATURES = 64


def masked_ones(
    placement: Placement, *, seed: int = 0, step: int = 0, p: float = 0.5, training: bool = True
) -> Tensor:
    """The layer's input for samples of ones, [global batch, F]; NaN for samples of other ranks."""
    layer = nn.Identity().train(training)
    dropout = PlacedDropout(layer, p, seed)
    total = placement.gpus * placement.samples_per_gpu
    positions = torch.arange(total)[placement.rank :: placement.world_size]
    result = torch.full((total, FEATURES), torch.nan)
    for part in placement.microbatches(ImageBatch(torch.ones(len(positions), FEATURES), positions)):
        dropout.set_position(step, part.positions, total)
        result[part.positions] = layer(part.batch.images)
    return result


@pytest.mark.parametrize("setting", [(8, 4), (1, 32)])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("per_pass", [None, 1])
def test_masks_do_not_depend_on_the_placement(
    setting: tuple[int, int], world_size: int, per_pass: int | None
) -> None:
    expected = masked_ones(Placement(*setting))
    assert not expected.isnan().any()
    combined = torch.full_like(expected, torch.nan)
    for rank in range(world_size):
        local = masked_ones(Placement(*setting, world_size, rank, per_pass))
        valid = ~local.isnan()
        assert combined[valid].isnan().all()
        combined[valid] = local[valid]
    assert combined.equal(expected)


def test_masks_differ_by_seed_step_sample_and_feature() -> None:
    placement = Placement(8, 4)
    masks = masked_ones(placement)
    assert masked_ones(placement).equal(masks)
    for other in (masked_ones(placement, seed=1), masked_ones(placement, step=1)):
        assert 0.4 < (other != masks).float().mean() < 0.6
    assert len(masks.unique(dim=0)) == len(masks)
    assert len(masks.unique(dim=1).T) == FEATURES


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_keeps_the_mean(p: float) -> None:
    placement = Placement(8, 8)
    values = torch.stack([masked_ones(placement, step=step, p=p) for step in range(20)]).double()
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    # The mean of n values of 0 or 1/(1-p) has the standard deviation sqrt(p / (1-p) / n).
    deviation = (p / (1 - p) / values.numel()) ** 0.5
    assert values.mean().item() == pytest.approx(1, abs=5 * deviation)


def test_nothing_is_dropped_in_evaluation() -> None:
    assert masked_ones(Placement(2, 2), training=False).equal(torch.ones(4, FEATURES))


def test_the_global_generator_is_not_used() -> None:
    state = torch.get_rng_state()
    masked_ones(Placement(2, 2))
    assert torch.get_rng_state().equal(state)


def test_gradients_have_the_same_mask() -> None:
    layer = nn.Identity()
    dropout = PlacedDropout(layer, 0.5, 0)
    dropout.set_position(0, torch.arange(4), 4)
    x = torch.ones(4, FEATURES, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.equal(y.detach())
