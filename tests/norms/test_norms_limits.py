"""PyTorch's layers as limit cases, with their running statistics and constructor arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from norm_reference import randomize
from torch import Tensor, nn

from sn_imagenet.norms import BatchNorm2d, GroupNorm2d, MomentNorm2d, SwitchNorm2d, set_replicas

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def batches(count: int = 3, channels: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (4, channels, 3, 2)
    return [
        3 * torch.rand(1, generator=generator) + torch.randn(shape, generator=generator).double()
        for _ in range(count)
    ]


def test_group_norm_reduces_its_groups_to_divide_the_channels() -> None:
    assert GroupNorm2d(16).num_groups == 16
    assert GroupNorm2d(48).num_groups == 16
    assert GroupNorm2d(7).num_groups == 1
    assert SwitchNorm2d(48, omega=("gn",)).num_groups == 16


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_are_separate_batches(replicas: int) -> None:
    """R replicas equal R nn.BatchNorm2d; the running statistics are the first replica's."""
    ours = BatchNorm2d(64, dtype=torch.float64)
    theirs = [nn.BatchNorm2d(64, dtype=torch.float64) for _ in range(replicas)]
    set_replicas(ours, replicas)
    for x in batches():
        y = ours(x)
        for r, layer in enumerate(theirs):
            torch.testing.assert_close(y[r::replicas], layer(x[r::replicas]), **EXACT)
    torch.testing.assert_close(ours.running_mean, theirs[0].running_mean, **EXACT)
    torch.testing.assert_close(ours.running_var, theirs[0].running_var, **EXACT)
    set_replicas(ours, replicas, holds_first_replica=False)
    before = ours.running_mean.clone()
    ours(batches()[0])
    torch.testing.assert_close(ours.running_mean, before, rtol=0, atol=0)


def test_switch_norm_keeps_batch_norms_running_statistics() -> None:
    switch, batch = SwitchNorm2d(64).double(), nn.BatchNorm2d(64).double()
    for x in batches():
        switch(x)
        batch(x)
    torch.testing.assert_close(switch.running_mean, batch.running_mean, **EXACT)
    torch.testing.assert_close(switch.running_var, batch.running_var, **EXACT)
    assert switch.num_batches_tracked == 3


def test_switch_norm_in_evaluation_mixes_stored_and_sample_statistics() -> None:
    """Sec. 2.1, "Inference": IN and LN from the sample, BN from the stored statistics."""
    layer = SwitchNorm2d(64).double().eval()
    randomize(layer)
    with torch.no_grad():
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    x = batches(1)[0]
    w, v = (p.softmax(0) for p in (layer.mean_weight, layer.var_weight))
    stored = layer.running_mean.view(1, -1, 1, 1), layer.running_var.view(1, -1, 1, 1)
    var_in, mean_in = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    var_ln, mean_ln = torch.var_mean(x, (1, 2, 3), correction=0, keepdim=True)
    mean = w[0] * mean_in + w[1] * mean_ln + w[2] * stored[0]
    var = v[0] * var_in + v[1] * var_ln + v[2] * stored[1]
    affine = [p.view(1, -1, 1, 1) for p in (layer.weight, layer.bias)]
    expected = (x - mean) / torch.sqrt(var + layer.eps) * affine[0] + affine[1]
    torch.testing.assert_close(layer(x), expected, **EXACT)
    torch.testing.assert_close(layer(x[:1]), expected[:1], **EXACT)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layer", [BatchNorm2d(64), SwitchNorm2d(64), GroupNorm2d(64)])
def test_no_grad_modes_give_the_same_output(mode: Callable, layer: MomentNorm2d) -> None:
    x = batches(1)[0].float()
    for training in (True, False):
        layer.train(training)
        state = {k: v.clone() for k, v in layer.state_dict().items()}
        expected = layer(x)
        layer.load_state_dict(state)
        with mode():
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
