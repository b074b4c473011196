"""Crops and batches on the device give the numbers of torchvision's transforms."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from disks import memory_limit
from PIL import Image
from small_configs import augment_config, data_config
from torch import nn
from torchvision.transforms import v2

from sn_imagenet.config import AugmentConfig, DataConfig
from sn_imagenet.data import crop as cropping
from sn_imagenet.data.augment import EIGENVALUES, EIGENVECTORS, Augmentation
from sn_imagenet.data.crop import CropParams, crop_image
from sn_imagenet.data.datasets import AugmentedDataset
from sn_imagenet.data.pixels import DeviceTransform, StoredBatch
from sn_imagenet.data.seeding import derive_seed, seeded
from sn_imagenet.data.sources import Sample

CPU = torch.device("cpu")
DATA = data_config("imagefolder")
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
OFFICIAL = augment_config("random_resized", True, 0.1, scale=SCALE, ratio=RATIO)


class Lighting(nn.Module):
    """PCA lighting as a transform of one image: draws a shift and adds it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        alpha = torch.randn(3) * OFFICIAL.lighting_std
        shift = torch.tensor(EIGENVECTORS) * torch.tensor(EIGENVALUES) * alpha
        return image + shift.sum(dim=1)[:, None, None]


TO_FLOAT = (v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True))
NORMALIZE = v2.Normalize(list(DATA.mean), list(DATA.std))
# The same transforms by torchvision, for one photograph at a time.
TRAINING = v2.Compose(
    [
        v2.RandomResizedCrop(224, scale=SCALE, ratio=RATIO),
        v2.RandomHorizontalFlip(),
        *TO_FLOAT,
        Lighting(),
        NORMALIZE,
    ]
)
PADDED = v2.Compose(
    [
        *(v2.Resize(40), v2.CenterCrop(32), v2.RandomCrop(32, padding=4)),
        *(v2.RandomHorizontalFlip(), *TO_FLOAT, NORMALIZE),
    ]
)
VALIDATION = v2.Compose([v2.Resize(256), v2.CenterCrop(224), *TO_FLOAT, NORMALIZE])


def as_tensor(photo: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(photo).permute(2, 0, 1)


def load(data: DataConfig, augment: AugmentConfig | None, photos: list) -> torch.Tensor:
    """All photos as one batch in epoch 0, uint8 or float [3, H, W] or uint8 [H, W, 3] each."""

    def open_photo(index: int) -> Sample:
        photo = photos[index]
        stored = as_tensor(photo) if isinstance(photo, np.ndarray) else photo
        return Sample(stored, tuple(stored.shape[1:]), 0)

    dataset = AugmentedDataset(SimpleNamespace(open=open_photo), data, augment, seed=0)
    batch = dataset.__getitems__([(0, i) for i in range(len(photos))])
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    return DeviceTransform(data, CPU)(batch)


def seeded_for(index: int):  # type: ignore[no-untyped-def]
    return seeded(derive_seed("augment", 0, 0, index))


@pytest.fixture(scope="module")
def photographs(imagenet_photos: Path) -> list[np.ndarray]:
    pixels = []
    for path in sorted((imagenet_photos / "train").rglob("*.JPEG")):
        with Image.open(path) as image:
            pixels.append(np.array(image.convert("RGB")))
    return pixels


def apply_to_all(transform: v2.Compose, photos: list[np.ndarray]) -> torch.Tensor:
    images = []
    for index, photo in enumerate(photos):
        with seeded_for(index):
            images.append(transform(Image.fromarray(photo)))
    return torch.stack(images)


def test_training_matches_torchvision(photographs: list[np.ndarray]) -> None:
    expected = apply_to_all(TRAINING, photographs)
    assert torch.equal(load(DATA, OFFICIAL, photographs), expected)


def test_validation_matches_torchvision(photographs: list[np.ndarray]) -> None:
    odd = [photo[: 150 + i, : 400 - 3 * i] for i, photo in enumerate(photographs[:40])]
    assert torch.equal(load(DATA, None, odd), apply_to_all(VALIDATION, odd))


def test_padded_crops_match_torchvision(photographs: list[np.ndarray]) -> None:
    data = data_config("cifar10", image_size=32, resize_size=40)
    batch = load(data, augment_config("pad", True, padding=4), photographs)
    assert torch.equal(batch, apply_to_all(PADDED, photographs))


def test_shorter_side_and_crop_cover_their_ranges(photographs: list[np.ndarray]) -> None:
    """He et al. 2016: draws cover their ranges, and pixels match torchvision."""
    sample_crop = Augmentation(DATA, augment_config("shorter_side", between=[256, 480])).sample_crop
    with seeded(0):
        crops = [sample_crop(300, 600) for _ in range(3000)]
    assert {crop.size[0] for crop in crops} == set(range(256, 481))
    assert all(crop.size[1] == 2 * crop.size[0] for crop in crops)
    places = np.array([np.divide(crop.corner, np.subtract(crop.size, 224)) for crop in crops])
    assert places.min() == 0 and places.max() == 1
    np.testing.assert_allclose(places.mean(axis=0), 0.5, atol=0.03)
    for seed, photo in enumerate(photographs[:20]):
        with seeded(seed):
            crop = sample_crop(*photo.shape[:2])
        resized = v2.functional.resize(Image.fromarray(photo), [min(crop.size)])
        expected = v2.functional.crop(resized, *crop.corner, 224, 224)
        square = crop_image(as_tensor(photo), crop, 224)
        assert np.array_equal(square.permute(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("side", [1, 5, 100, 250])  # all images at once, four, one at a time
@pytest.mark.parametrize("shifts", [False, True])
def test_normalization_is_that_of_operators_on_the_batch(side: int, shifts: bool) -> None:
    torch.manual_seed(side)
    batch = StoredBatch(
        torch.randint(0, 256, (7, 3, side, side), dtype=torch.uint8),
        torch.zeros(7, dtype=torch.int64),
        torch.randn(7, 3) if shifts else None,
    )
    expected = batch.images.to(torch.float32).mul_(1 / 255)
    if batch.shifts is not None:
        expected.add_(batch.shifts[:, :, None, None])
    expected.sub_(torch.tensor(DATA.mean)[:, None, None])
    expected.div_(torch.tensor(DATA.std)[:, None, None])
    for dtype in (torch.float32, torch.bfloat16):
        normalized = DeviceTransform(DATA, CPU, dtype)(batch)
        assert torch.equal(normalized, expected.to(dtype))
        assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_fast_differs_by_at_most_1_of_255(photographs: list[np.ndarray]) -> None:
    """The documentation says that about 3 % of the values differ, by 1."""
    augmentation, shares = Augmentation(DATA, OFFICIAL), []
    for index, photo in enumerate(photographs):
        with seeded_for(index):
            crop = augmentation.sample_crop(*photo.shape[:2])
        exact, fast = (crop_image(as_tensor(photo), crop, 224, how) for how in ("exact", "fast"))
        difference = (exact.int() - fast.int()).abs()
        assert difference.max() <= 1
        shares.append((difference > 0).float().mean().item())
    assert 0 < np.mean(shares) < 0.05


def test_bicubic_validation_matches_torchvision() -> None:
    data = data_config("imagefolder", interpolation="bicubic")
    bicubic = v2.InterpolationMode.BICUBIC
    expected = v2.Compose([v2.Resize(256, interpolation=bicubic), v2.CenterCrop(224)])
    photo = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    crop = Augmentation(data).sample_crop(300, 280)
    exact, fast = (crop_image(as_tensor(photo), crop, 224, how) for how in ("exact", "fast"))
    assert np.array_equal(exact.permute(1, 2, 0), np.asarray(expected(Image.fromarray(photo))))
    assert (exact.int() - fast.int()).abs().max() <= 2
    stored = torch.rand(3, 300, 280)
    assert torch.equal(crop_image(stored, crop, 224), expected(stored))


@pytest.mark.parametrize(
    "augment", [None, augment_config("shorter_side", between=[256, 480])], ids=["val", "he2016"]
)
def test_long_images_are_cut_before_they_are_resized(augment: AugmentConfig | None) -> None:
    """1 x 5000 pixels would become 256 x 1,280,000, which took gigabytes."""
    long = np.random.default_rng(0).integers(0, 256, (1, 5000, 3), dtype=np.uint8)
    with memory_limit(1_000_000_000):
        assert load(DATA, augment, [long, long.transpose(1, 0, 2)]).shape == (2, 3, 224, 224)


def test_a_cut_before_the_resize_changes_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (100, 333, 3), dtype=np.uint8)
    expected = load(DATA, None, [photo])
    monkeypatch.setattr(cropping, "MAX_RESIZED", 1)
    cut = load(DATA, None, [photo])
    assert (cut - expected).abs().max() <= 1.01 / 255 / min(DATA.std)


def test_float_images_match_torchvision() -> None:
    data = data_config("digits", image_size=16, resize_size=16)
    padded = v2.Compose([v2.RandomCrop(16, padding=1), v2.Normalize(data.mean, data.std)])
    stored = torch.rand(3, 16, 16)
    before = stored.clone()
    batch = load(data, augment_config("pad", padding=1), [stored] * 20)
    for index, image in enumerate(batch):
        with seeded_for(index):
            assert torch.equal(image, padded(stored))
    assert torch.equal(stored, before)
    box = CropParams(box=(2, 3, 8, 10), size=(16, 16))
    expected = v2.functional.resize(stored[:, 2:10, 3:13], [16, 16], antialias=True)
    assert torch.equal(crop_image(stored, box, 16), expected)


def test_normalization_matches_the_formula_in_float64() -> None:
    images = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8)
    shifts = torch.randn(4, 3)
    batch = StoredBatch(images, torch.zeros(4, dtype=torch.int64), shifts)
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (DATA.mean, DATA.std))
    expected = (images.double() / 255 + shifts.double()[:, :, None, None] - mean) / std
    torch.testing.assert_close(
        DeviceTransform(DATA, CPU)(batch).double(), expected, atol=2e-6, rtol=0
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batches_on_cuda_match_the_cpu(dtype: torch.dtype) -> None:
    transform = DeviceTransform(DATA, torch.device("cuda"), dtype)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator)
        shifts = torch.randn(8, 3, generator=generator)
        batch = StoredBatch(
            images.contiguous(memory_format=torch.channels_last), torch.zeros(8), shifts
        )
        on_cuda = transform(StoredBatch(*(part.pin_memory() for part in batch)))
        assert on_cuda.is_contiguous(memory_format=torch.channels_last)
        expected = DeviceTransform(DATA, CPU)(batch)
        unit = 0 if dtype == torch.float32 else 2**-7  # in the last place
        torch.testing.assert_close(on_cuda.cpu(), expected.to(dtype), rtol=unit, atol=1e-6)
