"""Augmentation depends only on (seed, epoch, sample id); crop geometry; PCA lighting."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_configs import augment_config, data_config
from torchvision.transforms import v2

from sn_imagenet.config import DataConfig, ExperimentConfig
from sn_imagenet.data import augment as augmenting
from sn_imagenet.data.augment import Apply, Crop, Operation, Square, lighting
from sn_imagenet.data.crop import CropParams, crop_image
from sn_imagenet.data.datasets import DataSets, build
from sn_imagenet.data.decode import decode
from sn_imagenet.data.seeding import derive_seed, seeded
from sn_imagenet.errors import ConfigError
from sn_imagenet.tasks.classification.departures import departures


def test_draws_depend_on_epoch_sample_and_seed_only(
    composed: Callable[..., ExperimentConfig], digits: DataSets
) -> None:
    keys = [(epoch, index) for epoch in range(3) for index in range(20)]
    first = {key: digits.train[key][0] for key in keys}
    random.Random(0).shuffle(keys)
    torch.manual_seed(99)
    assert all(torch.equal(digits.train[key][0], first[key]) for key in keys)

    changed = [not torch.equal(first[0, i], first[1, i]) for i in range(20)]
    assert sum(changed) >= 12  # of nine shifts, one in nine draws agrees by chance
    crops = [digits.train._draw(0, index)[1] for index in range(200)]
    assert len(set(crops)) == 9
    config = composed("data=digits")
    other = build(config.data, config.augment, seed=1)
    assert sum(not torch.equal(first[0, i], other.train[0, i][0]) for i in range(20)) >= 12
    assert all(torch.equal(digits.val[0, i][0], other.val[7, i][0]) for i in range(20))


def test_an_error_leaves_the_global_random_state_alone(digits: DataSets) -> None:
    before = torch.get_rng_state()
    with pytest.raises(IndexError):
        digits.train[0, 10**6]
    with pytest.raises(RuntimeError), seeded(1):
        torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 3), unique=True, max_size=50))
def test_seeds_are_64_bit_and_distinct(numbers: list[tuple[int, int, int]]) -> None:
    seeds = {derive_seed("augment", *three) for three in numbers}
    seeds |= {derive_seed("order", *three) for three in numbers}
    assert len(seeds) == 2 * len(numbers)
    assert all(0 <= seed < 2**64 for seed in seeds)


@given(std=st.floats(0.01, 1), seed=st.integers(0, 1000))
def test_lighting_matches_the_formula_of_alexnet(std: float, seed: int) -> None:
    draw, _ = lighting(data_config("digits"), std)
    with seeded(seed):
        drawn = draw()(Square(torch.zeros(3, 1, 1))).shift
    with seeded(seed):
        alpha = std * torch.randn(3).numpy().astype(np.float64)
    eigenvectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    # [p1, p2, p3] [a1 l1, a2 l2, a3 l3]^T, Krizhevsky et al. 2012, Sec. 4.1
    shift = eigenvectors @ (alpha * np.array([0.2175, 0.0188, 0.0045]))
    np.testing.assert_allclose(drawn, shift, atol=1e-6)
    np.testing.assert_allclose(eigenvectors.T @ eigenvectors, np.eye(3), atol=1e-3)


def test_adding_an_augmentation_takes_one_function_and_one_yaml(
    composed: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def corner(data: DataConfig, side: int) -> Crop:
        size = (data.image_size, data.image_size)
        return lambda height, width: CropParams((0, 0, side, side), size), f"corner of {side}"

    def darker(data: DataConfig, by: float) -> Operation:
        def draw() -> Apply:
            return lambda square: square._replace(image=square.image * by)

        return draw, f"darker by {by:g}"

    monkeypatch.setitem(augmenting.CROPS, "corner", corner)
    monkeypatch.setitem(augmenting.OPERATIONS, "darker", darker)
    (tmp_path / "augment").mkdir()
    (tmp_path / "augment" / "corner.yaml").write_text(
        "{name: corner, crop: corner, args: {side: 5}, flip: false, lighting_std: 0.0, "
        "operations: {darker: {by: 0.5}}}"
    )
    search_path = f"hydra.searchpath=[file://{tmp_path}]"
    config = composed("data=digits", "augment=corner", search_path)
    train = build(config.data, config.augment, seed=0).train
    stored = train.source.open(7).stored[:, :5, :5]
    expected = v2.functional.resize(stored, [16, 16], antialias=True)
    expected = v2.functional.normalize(0.5 * expected, config.data.mean, config.data.std)
    assert torch.equal(train[0, 7][0], expected)
    ours = {d["item"]: d["ours"] for d in departures(config, {})}
    assert ours["augmentation"] == "corner of 5, no flip, darker by 0.5"


@pytest.mark.parametrize("augment", ["color_jitter", "random_erasing"])
def test_operations_match_torchvisions_transforms(
    composed: Callable[..., ExperimentConfig], cifar_photos: Path, augment: str
) -> None:
    """They run after crop and flip, with the random draws of (seed, epoch, sample)."""
    folders = [f"data.{split}={cifar_photos / split}" for split in ("train", "val")]
    config = composed("data=imagefolder_small", *folders, f"augment={augment}")
    train = build(config.data, config.augment, seed=3).train
    mean = [255 * value for value in config.data.mean]
    transform = {
        "color_jitter": v2.ColorJitter(0.4, 0.4, 0.4),
        "random_erasing": v2.RandomErasing(0.25, (0.02, 0.33), (0.3, 3.3), mean),
    }[augment]
    finish = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.data.mean, config.data.std)]
    )
    changed = 0
    for index in range(40):
        stored, _, _ = train.source.open(index)
        photo = torch.from_numpy(decode(stored)).permute(2, 0, 1)
        with seeded(derive_seed("augment", 3, 5, index)):
            square = crop_image(photo, train.augmentation.sample_crop(32, 32), 32)
            square = square.flip(2) if torch.rand(1) < 0.5 else square
            expected = transform(square)
        assert torch.equal(train[5, index][0], finish(expected))
        changed += not torch.equal(square, expected)
    assert 3 <= changed <= 40


@pytest.mark.parametrize(
    ("crop", "args", "message"),
    [
        ("big", {}, r"augment\.crop=big: expected one of random_resized, shorter_side, pad, none"),
        ("pad", {"padding": -1}, r"padding=-1: expected a whole number of 0 or more"),
        ("pad", {"padding": 1.5}, r"padding=1\.5: expected a whole number"),
        ("pad", {}, r"augment\.args=\{\}: .*'padding'"),
        ("none", {"padding": 1}, r"augment\.args=\{'padding': 1\}: .*'padding'"),
        ("shorter_side", {"between": [100, 200]}, r"between=\[100, 200\]: .*image_size=224 <= low"),
        ("shorter_side", {"between": [300.5, 400]}, r"expected whole numbers"),
        ("random_resized", {"scale": [0, 1]}, r"scale=\[0, 1\]: expected 0 < low <= high <= 1"),
        ("random_resized", {"scale": [0.5, 0.2]}, r"scale=\[0\.5, 0\.2\]: expected 0 < low"),
        ("random_resized", {"scale": [0.5]}, r"scale=\[0\.5\]: expected 2 numbers"),
        ("random_resized", {"scale": "wide"}, r"scale=wide: expected 2 numbers"),
        ("random_resized", {"scale": ["a", "b"]}, r"augment\.args=.*could not convert"),
        ("random_resized", {"ratio": [1, 2, 3]}, r"ratio=\[1, 2, 3\]: expected 2 numbers"),
        ("random_resized", {"ratio": [2, 1]}, r"ratio=\[2, 1\]: expected 0 < narrow <= wide"),
        ("none", {"operations": {"blur": {}}}, r"augment\.operations=blur: expected one of flip, "),
        ("none", {"operations": {"color_jitter": {"hue": 2}}}, r"operations\.color_jitter=.*hue"),
        ("none", {"operations": {"random_erasing": {"p": 0.5}}}, r"random_erasing=.*'scale'"),
    ],
)
def test_bad_arguments_are_reported_before_data_are_read(
    crop: str, args: dict[str, object], message: str
) -> None:
    if crop == "random_resized":
        args = {"scale": [0.08, 1.0], "ratio": [0.75, 1.5], **args}
    with pytest.raises(ConfigError, match=message):
        build(data_config("imagenet", root="absent"), augment_config(crop, **args), seed=0)
