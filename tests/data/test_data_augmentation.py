"""Augmentation draws are a function of (seed, epoch, sample id); the geometry; PCA lighting."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from sn_imagenet.config import AugmentConfig, DataConfig, ExperimentConfig
from sn_imagenet.data import DataSets, build
from sn_imagenet.data.seeding import derive_seed, seeded
from sn_imagenet.data.transforms import Lighting, training_transform, validation_transform


def test_draws_depend_on_epoch_sample_and_seed_only(
    composed: Callable[..., ExperimentConfig], digits: DataSets
) -> None:
    keys = [(epoch, index) for epoch in range(3) for index in range(20)]
    first = {key: digits.train[key][0] for key in keys}
    random.Random(0).shuffle(keys)
    torch.manual_seed(99)
    assert all(torch.equal(digits.train[key][0], first[key]) for key in keys)

    changed = [not torch.equal(first[0, i], first[1, i]) for i in range(20)]
    assert sum(changed) >= 12  # nine shifts: one in nine draws agrees by chance
    config = composed("data=digits")
    other = build(config.data, config.augment, seed=1)
    assert sum(not torch.equal(first[0, i], other.train[0, i][0]) for i in range(20)) >= 12
    assert all(torch.equal(digits.val[0, i][0], other.val[7, i][0]) for i in range(20))


def test_two_samples_of_an_epoch_are_drawn_differently(cifar_photos: Path) -> None:
    transform = training_transform(
        DataConfig(name="x", source="digits", image_size=32, resize_size=32),
        AugmentConfig(name="crop_flip", crop="pad"),
    )
    photo = Image.open(next((cifar_photos / "train").rglob("*.jpg"))).convert("RGB")
    seen = set()
    for index in range(200):
        with seeded(derive_seed("augment", 0, 0, index)):
            seen.add(transform(photo).numpy().tobytes())
    assert len(seen) > 60  # of 9 * 9 shifts, flipped or not


def test_access_leaves_the_global_random_state_alone(digits: DataSets) -> None:
    before = torch.get_rng_state()
    digits.train[0, 0]
    digits.val[0, 0]
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(IndexError):
        digits.train[0, 10**6]
    with pytest.raises(RuntimeError), seeded(1):
        torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 3), unique=True, max_size=50))
def test_seeds_are_64_bit_and_apart(numbers: list[tuple[int, int, int]]) -> None:
    seeds = {derive_seed("augment", *three) for three in numbers}
    seeds |= {derive_seed("order", *three) for three in numbers}
    assert len(seeds) == 2 * len(numbers)
    assert all(0 <= seed < 2**64 for seed in seeds)


@given(
    image=hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=32)),
    std=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
def test_lighting_is_the_formula_of_alexnet(image: np.ndarray, std: float, seed: int) -> None:
    with seeded(seed):
        out = Lighting(std)(torch.from_numpy(image))
    with seeded(seed):
        alpha = std * torch.randn(3).numpy().astype(np.float64)
    eigenvectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    # [p1, p2, p3] [a1 l1, a2 l2, a3 l3]^T, Krizhevsky et al. 2012, Sec. 4.1
    shift = eigenvectors @ (alpha * np.array([0.2175, 0.0188, 0.0045]))
    np.testing.assert_allclose(out.numpy(), image + shift.reshape(3, 1, 1), atol=1e-6)
    np.testing.assert_allclose(eigenvectors.T @ eigenvectors, np.eye(3), atol=1e-3)


def test_lighting_comes_before_normalisation() -> None:
    data = DataConfig(name="x", source="digits", image_size=8, resize_size=8)
    plain = AugmentConfig(name="plain", crop="none", flip=False)
    lit = AugmentConfig(name="lit", crop="none", flip=False, lighting_std=0.1)
    image = torch.rand(3, 8, 8)
    with seeded(4):
        shift = Lighting(0.1)(torch.zeros(3, 1, 1)) / torch.tensor(data.std)[:, None, None]
    with seeded(4):
        out = training_transform(data, lit)(image)
    torch.testing.assert_close(out, training_transform(data, plain)(image) + shift)


def test_validation_resizes_the_shorter_side_and_crops_the_centre() -> None:
    data = DataConfig(name="x", source="imagefolder", image_size=4, resize_size=6)
    wide = np.zeros((6, 12, 3), np.uint8)
    wide[1:5, 4:8] = 255  # what a centre crop of 4x4 must show, and nothing else
    out = validation_transform(data)(Image.fromarray(wide))
    white = (1 - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(out, white[:, None, None].expand(3, 4, 4))
    assert validation_transform(data)(Image.fromarray(wide).resize((40, 90))).shape == (3, 4, 4)


@pytest.mark.parametrize("augment", ["official", "crop_flip", "crop", "none"])
def test_photographs_of_any_size_and_mode_come_out_alike(
    composed: Callable[..., ExperimentConfig], imagenet_photos: Path, augment: str
) -> None:
    train = imagenet_photos / "train"
    config = composed(
        "data=imagefolder", f"data.train={train}", f"data.val={train}", f"augment={augment}"
    )
    data = build(config.data, config.augment, seed=0)
    assert (len(data.train), len(data.classes)) == (200, 200)
    grey = []
    for index, path in enumerate(sorted(train.rglob("*.JPEG"))):
        with Image.open(path) as photo:
            if photo.mode == "L":
                grey.append(index)
    assert grey
    for index in [*grey, 0, 17]:
        for image, label in (data.train[0, index], data.val[0, index]):
            assert (image.shape, image.dtype) == ((3, 224, 224), torch.float32)
            assert torch.isfinite(image).all()
            assert label == index
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.data.mean, config.data.std))
    image = data.val[0, grey[0]][0] * std + mean
    torch.testing.assert_close(image[0], image[2])


def test_crop_flip_shifts_and_mirrors_small_photographs(
    composed: Callable[..., ExperimentConfig], cifar_photos: Path
) -> None:
    config = composed(
        "data=imagefolder",
        f"data.train={cifar_photos / 'train'}",
        f"data.val={cifar_photos / 'val'}",
        "data.image_size=32",
        "data.resize_size=32",
        "augment=crop_flip",
    )
    data = build(config.data, config.augment, seed=0)
    assert (len(data.train), len(data.val), len(data.classes)) == (5000, 1000, 10)
    plain = validation_transform(config.data)
    photo, _ = data.train.source[123]
    black = -torch.tensor(config.data.mean) / torch.tensor(config.data.std)
    padded = black[:, None, None].expand(3, 40, 40).clone()
    padded[:, 4:36, 4:36] = plain(photo)
    crops = {
        (flip, y, x): torch.flip(crop, (2,)) if flip else crop
        for y in range(9)
        for x in range(9)
        for crop in [padded[:, y : y + 32, x : x + 32]]
        for flip in (False, True)
    }
    flips = set()
    for epoch in range(12):
        image, _ = data.train[epoch, 123]
        match = [key for key, crop in crops.items() if torch.allclose(image, crop, atol=1e-6)]
        assert len(match) == 1
        flips.add(match[0][0])
    assert flips == {False, True}
