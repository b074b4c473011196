"""Batches hold the right samples, for every number of ranks and workers."""

from __future__ import annotations

import itertools
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sn_imagenet.data.datasets import DataSets
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.loaders import (
    CalibrationBatchSampler,
    TrainBatchSampler,
    calibration_loader,
    eval_batches,
    eval_loader,
    train_loader,
)
from sn_imagenet.data.seeding import epoch_order

Batches = list[tuple[Tensor, Tensor]]


def equal_batches(left: Batches, right: Batches) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def rank_batches(data: DataSets, rank: int, world_size: int, workers: int) -> Batches:
    loader = train_loader(
        data.train, global_batch=200, rank=rank, world_size=world_size, seed=3, workers=workers
    )
    return list(loader.epoch(2))


def global_batches(data: DataSets, world_size: int, workers: int) -> Batches:
    """Interleave the ranks' samples again: position i is from rank i mod world_size."""
    ranks = [rank_batches(data, rank, world_size, workers) for rank in range(world_size)]

    def interleave(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, dim=1).flatten(0, 1)

    return [
        (interleave([images for images, _ in step]), interleave([labels for _, labels in step]))
        for step in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize(
    ("world_size", "workers"), [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (4, 2)]
)
def test_global_batches_do_not_depend_on_ranks_or_workers(
    digits: DataSets, world_size: int, workers: int
) -> None:
    reference = global_batches(digits, world_size=1, workers=0)
    assert len(reference) == 1397 // 200
    images, labels = reference[0]
    assert (images.shape, images.dtype) == ((200, 3, 16, 16), torch.float32)
    assert (labels.shape, labels.dtype) == ((200,), torch.int64)
    assert equal_batches(global_batches(digits, world_size, workers), reference)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_loader_serves_all_epochs_and_resumes_within_one(
    digits: DataSets, workers: int
) -> None:
    def load_with_new_loader(epoch: int, start_step: int) -> Batches:
        loader = train_loader(
            digits.train, global_batch=300, rank=0, world_size=1, seed=1, workers=0
        )
        return list(loader.epoch(epoch, start_step))

    loader = train_loader(
        digits.train, global_batch=300, rank=0, world_size=1, seed=1, workers=workers
    )
    first = list(loader.epoch(0))
    assert len(first) == len(loader) == 4
    next(loader.epoch(1))  # leave an epoch early
    assert equal_batches(list(loader.epoch(1)), load_with_new_loader(epoch=1, start_step=0))
    assert equal_batches(list(loader.epoch(0, start_step=3)), first[3:])
    assert equal_batches(load_with_new_loader(epoch=0, start_step=3), first[3:])
    assert list(loader.epoch(0, start_step=4)) == []
    assert not equal_batches(first, load_with_new_loader(epoch=1, start_step=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_leave_the_global_random_state_alone(digits: DataSets, workers: int) -> None:
    loaders = [
        train_loader(digits.train, global_batch=64, rank=0, world_size=1, seed=0, workers=workers),
        eval_loader(digits.val, batch_size=64, rank=0, world_size=1, workers=workers),
        calibration_loader(
            digits.train,
            minibatch=8,
            samples=64,
            seed=0,
            rank=0,
            world_size=1,
            minibatches_per_batch=2,
            workers=workers,
        ),
    ]
    before = torch.get_rng_state()
    for loader in loaders:
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


@given(
    num_samples=st.integers(1, 60),
    batch=st.integers(1, 20),
    world_size=st.integers(1, 8),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 300),
)
def test_train_sampler_distributes_a_permutation(
    num_samples: int, batch: int, world_size: int, seed: int, epoch: int
) -> None:
    if batch > num_samples:
        with pytest.raises(DataError, match=rf"\b{batch}\b.*\b{num_samples}\b"):
            TrainBatchSampler(num_samples, batch, 0, world_size, seed)
        return
    order = epoch_order(num_samples, seed, epoch).tolist()
    assert sorted(order) == list(range(num_samples))
    for rank in range(world_size):
        sampler = TrainBatchSampler(num_samples, batch, rank, world_size, seed)
        sampler.set_epoch(epoch)
        steps = list(sampler)
        assert len(steps) == len(sampler) == num_samples // batch
        for b, keys in enumerate(steps):
            expected = order[b * batch : (b + 1) * batch][rank::world_size]
            assert keys == [(epoch, index) for index in expected]


def test_order_depends_on_seed_and_epoch() -> None:
    orders = [epoch_order(100, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(orders, 2))
    assert torch.equal(epoch_order(100, 1, 2), epoch_order(100, 1, 2))


@given(num_samples=st.integers(1, 40), batch=st.integers(1, 12), world_size=st.integers(1, 50))
def test_eval_batches_are_whole(num_samples: int, batch: int, world_size: int) -> None:
    """The ranks get the batches of a single rank in turn."""
    whole = [range(num_samples)[i : i + batch] for i in range(0, num_samples, batch)]
    for rank in range(world_size):
        batches = eval_batches(num_samples, batch, rank, world_size)
        assert batches == [[(0, index) for index in keys] for keys in whole[rank::world_size]]


@pytest.mark.parametrize("workers", [0, 1])
def test_eval_loader_of_a_rank_without_samples(digits: DataSets, workers: int) -> None:
    sampling = {"batch_size": 400, "rank": 1, "world_size": 2}
    assert list(eval_loader(digits.val, workers=workers, **sampling)) == []


@settings(max_examples=60)
@given(
    num_samples=st.integers(1, 80),
    n=st.integers(1, 9),
    samples=st.one_of(st.just("all"), st.integers(1, 120)),
    world_size=st.integers(1, 5),
    k=st.integers(1, 5),
    seed=st.integers(0, 3),
    skip=st.integers(0, 4),
)
def test_calibration_sampler_interleaves_minibatches_and_keeps_batches_whole(
    num_samples: int, n: int, samples: int | str, world_size: int, k: int, seed: int, skip: int
) -> None:
    available = num_samples if samples == "all" else min(int(samples), num_samples)
    arguments = (num_samples, n, samples, seed)
    if available < n:
        with pytest.raises(DataError, match="does not fill one minibatch"):
            CalibrationBatchSampler(*arguments, 0, world_size, k)
        return
    order = epoch_order(num_samples, seed, -1 - seed).tolist()
    minibatches = available // n
    whole = [range(minibatches)[start : start + k] for start in range(skip, minibatches, k)]
    for rank in range(world_size):
        sampler = CalibrationBatchSampler(*arguments, rank, world_size, k, skip)
        assert sampler.minibatches == minibatches
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for keys, minibatch_ids in zip(batches, whole[rank::world_size], strict=True):
            assert {key.epoch for key in keys} == {-1 - seed}
            for group, m in enumerate(minibatch_ids):
                expected = order[m * n : (m + 1) * n]
                assert [key.sample for key in keys[group :: len(minibatch_ids)]] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_calibration_loader_yields_augmented_minibatches(digits: DataSets, workers: int) -> None:
    sampling = {"minibatch": 8, "samples": 100, "seed": 5, "rank": 0, "world_size": 1}
    loader = partial(calibration_loader, digits.train, workers=workers, **sampling)
    calibration = loader(minibatches_per_batch=5)
    assert (calibration.sampler.minibatches, calibration.sampler.samples_used) == (12, 96)
    batches = list(calibration)
    assert [len(labels) for _, labels in batches] == [40, 40, 16]
    alone = list(loader(minibatches_per_batch=1))
    assert torch.equal(batches[1].images[2::5], alone[5 + 2].images)
    assert torch.equal(batches[2].labels[1::2], alone[10 + 1].labels)


def test_too_little_shared_memory_is_told_before_a_worker_starts(
    digits: DataSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker gives a container 64 MB."""
    free = SimpleNamespace(f_bavail=1, f_frsize=2_000_000)
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    sizes = {"global_batch": 1000, "rank": 0, "world_size": 1, "seed": 0}
    train_loader(digits.train, workers=1, **sizes)
    message = r"data\.workers=2 .* 2 batches of 0\.8 MB .* has 2.0 MB.*--shm-size.*data\.workers=0"
    with pytest.raises(DataError, match=message):
        train_loader(digits.train, workers=2, **sizes)
    train_loader(digits.train, workers=0, **sizes)
