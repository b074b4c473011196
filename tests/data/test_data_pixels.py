"""uint8 crops and batches on the device give the numbers of torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_configs import augment_config, data_config
from torch import nn
from torchvision.transforms import v2

from sn_imagenet.data import pixels
from sn_imagenet.data.crop_image import CropParams, crop_exact, crop_fast, crop_float
from sn_imagenet.data.crops import SampleCrop
from sn_imagenet.data.pixels import DeviceTransform, StoredBatch, on_device
from sn_imagenet.data.seeding import seeded
from sn_imagenet.data.transforms import EIGENVALUES, EIGENVECTORS, training_crop, validation_crop

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


def batch_of(images: torch.Tensor, crops: list[CropParams]) -> StoredBatch:
    return StoredBatch(
        images,
        torch.zeros(len(crops), dtype=torch.int64),
        torch.tensor([crop.flip for crop in crops]),
        torch.tensor([crop.shift or (0.0, 0.0, 0.0) for crop in crops]),
    )


def run_pipeline(
    photos: list[np.ndarray],
    crops: list[CropParams],
    crop_function: Callable[[np.ndarray, CropParams, torch.Tensor], None],
    side: int = 224,
) -> torch.Tensor:
    images = torch.full((len(crops), side, side, 3), 77, dtype=torch.uint8)
    for photo, crop, out in zip(photos, crops, images, strict=True):
        crop_function(photo, crop, out)
    [(batch, _)] = on_device([batch_of(images, crops)], DeviceTransform(DATA, CPU), CPU)
    return batch


@pytest.fixture(scope="module")
def photographs(imagenet_photos: Path) -> list[np.ndarray]:
    pixels = []
    for path in sorted((imagenet_photos / "train").rglob("*.JPEG")):
        with Image.open(path) as image:
            pixels.append(np.array(image.convert("RGB")))
    return pixels


def sample_crops(sample_crop: SampleCrop, photos: list[np.ndarray]) -> list[CropParams]:
    crops = []
    for seed, photo in enumerate(photos):
        with seeded(seed):
            crops.append(sample_crop(*photo.shape[:2]))
    return crops


def apply_to_all(transform: v2.Compose, photos: list[np.ndarray]) -> torch.Tensor:
    images = []
    for seed, photo in enumerate(photos):
        with seeded(seed):
            images.append(transform(Image.fromarray(photo)))
    return torch.stack(images)


def test_training_matches_torchvision(photographs: list[np.ndarray]) -> None:
    crops = sample_crops(training_crop(DATA, OFFICIAL), photographs)
    assert {crop.flip for crop in crops} == {False, True}
    expected = apply_to_all(TRAINING, photographs)
    assert torch.equal(run_pipeline(photographs, crops, crop_exact), expected)


def test_validation_matches_torchvision(photographs: list[np.ndarray]) -> None:
    odd = [photo[: 150 + i, : 400 - 3 * i] for i, photo in enumerate(photographs[:40])]
    crops = sample_crops(validation_crop(DATA), odd)
    assert torch.equal(run_pipeline(odd, crops, crop_exact), apply_to_all(VALIDATION, odd))


def test_padded_crops_match_torchvision(photographs: list[np.ndarray]) -> None:
    data = data_config("cifar10", image_size=32, resize_size=40)
    crops = sample_crops(training_crop(data, augment_config("pad", True, padding=4)), photographs)
    assert len({crop.translate for crop in crops}) > 50
    batch = run_pipeline(photographs, crops, crop_exact, side=32)
    assert torch.equal(batch, apply_to_all(PADDED, photographs))


def test_shorter_side_and_crop_cover_their_ranges(photographs: list[np.ndarray]) -> None:
    """He et al. 2016: draws cover their ranges, and pixels match torchvision."""
    sample_crop = training_crop(DATA, augment_config("shorter_side", between=[256, 480]))
    with seeded(0):
        crops = [sample_crop(300, 600) for _ in range(3000)]
    assert {crop.size[0] for crop in crops} == set(range(256, 481))
    assert all(crop.size[1] == 2 * crop.size[0] for crop in crops)
    places = np.array([np.divide(crop.corner, np.subtract(crop.size, 224)) for crop in crops])
    assert places.min() == 0 and places.max() == 1
    np.testing.assert_allclose(places.mean(axis=0), 0.5, atol=0.03)
    out = torch.empty(224, 224, 3, dtype=torch.uint8)
    sampled = sample_crops(sample_crop, photographs[:20])
    for photo, crop in zip(photographs[:20], sampled, strict=True):
        crop_exact(photo, crop, out)
        resized = v2.functional.resize(Image.fromarray(photo), [min(crop.size)])
        expected = v2.functional.crop(resized, *crop.corner, 224, 224)
        assert np.array_equal(out.numpy(), np.asarray(expected))


@pytest.mark.parametrize("side", [1, 5, 32])
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("shifts", [False, True])
def test_compiled_normalization_matches_the_operators(
    monkeypatch: pytest.MonkeyPatch, side: int, flips: bool, shifts: bool
) -> None:
    if pixels._compiled_normalize() is None:
        pytest.skip("no C++ compiler")
    torch.manual_seed(side)
    batch = StoredBatch(
        torch.randint(0, 256, (7, side, side, 3), dtype=torch.uint8),
        torch.zeros(7, dtype=torch.int64),
        torch.rand(7) < 0.5 if flips else None,
        torch.randn(7, 3) if shifts else None,
    )
    compiled = DeviceTransform(DATA, CPU)(batch)
    assert compiled.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(pixels, "_compiled_normalize", lambda: None)
    assert torch.equal(compiled, DeviceTransform(DATA, CPU)(batch))


def test_fast_differs_by_at_most_1_of_255(photographs: list[np.ndarray]) -> None:
    """The documentation says that about 3 % of the values differ, by 1."""
    crops = sample_crops(training_crop(DATA, OFFICIAL), photographs)
    exact, fast = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    shares = []
    for photo, crop in zip(photographs, crops, strict=True):
        crop_exact(photo, crop, exact)
        crop_fast(photo, crop, fast)
        difference = (exact.int() - fast.int()).abs()
        assert difference.max() <= 1
        shares.append((difference > 0).float().mean().item())
    assert 0 < np.mean(shares) < 0.05


def test_bicubic_validation_matches_torchvision() -> None:
    data = data_config("imagefolder", interpolation="bicubic")
    bicubic = v2.InterpolationMode.BICUBIC
    expected = v2.Compose([v2.Resize(256, interpolation=bicubic), v2.CenterCrop(224)])
    photo = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    crop = validation_crop(data)(300, 280)
    exact, fast = (torch.empty(224, 224, 3, dtype=torch.uint8) for _ in range(2))
    crop_exact(photo, crop, exact)
    assert np.array_equal(exact.numpy(), np.asarray(expected(Image.fromarray(photo))))
    crop_fast(photo, crop, fast)
    assert (exact.int() - fast.int()).abs().max() <= 2
    stored = torch.rand(3, 300, 280)
    out = torch.empty(3, 224, 224)
    crop_float(stored, crop, out)
    assert torch.equal(out, expected(stored))


def test_float_images_match_torchvision() -> None:
    data = data_config("digits", image_size=16, resize_size=16)
    padded = v2.Compose([v2.RandomCrop(16, padding=1), v2.Normalize(data.mean, data.std)])
    sample_crop = training_crop(data, augment_config("pad", padding=1))
    stored = torch.rand(3, 16, 16)
    before = stored.clone()
    for seed in range(20):
        with seeded(seed):
            crop = sample_crop(16, 16)
        with seeded(seed):
            expected = padded(stored)
        out = torch.full((1, 3, 16, 16), 7.0)
        crop_float(stored, crop, out[0])
        batch = StoredBatch(out, torch.zeros(1, dtype=torch.int64), None, None)
        assert torch.equal(DeviceTransform(data, CPU)(batch)[0], expected)
    assert torch.equal(stored, before)
    box = CropParams(box=(2, 3, 8, 10), size=(16, 16))
    crop_float(stored, box, out[0])
    expected = v2.functional.resize(stored[:, 2:10, 3:13], [16, 16], antialias=True)
    assert torch.equal(out[0], expected)


def test_normalization_matches_the_formula_in_float64() -> None:
    crops = [
        CropParams(None, (4, 4), flip=i % 2 == 0, shift=(0.1 * i, -0.2, 0.3)) for i in range(4)
    ]
    images = torch.randint(0, 256, (4, 4, 4, 3), dtype=torch.uint8)
    batch = DeviceTransform(DATA, CPU)(batch_of(images, crops)).double().numpy()
    for i, crop in enumerate(crops):
        pixels = images[i].numpy().astype(np.float64)[:, :: -1 if crop.flip else 1] / 255
        expected = (pixels + np.array(crop.shift or 0) - DATA.mean) / np.array(DATA.std)
        np.testing.assert_allclose(batch[i], expected.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_cuda_match_the_cpu() -> None:
    cuda = torch.device("cuda")
    batches = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=generator)
        crops = [CropParams(None, (64, 64), flip=i % 2 == 0, shift=(0.1, 0.2, i)) for i in range(8)]
        batches.append(batch_of(images, crops))
    pinned = [StoredBatch(*(part.pin_memory() for part in batch)) for batch in batches]
    for (on_cuda, labels), batch in zip(
        on_device(pinned, DeviceTransform(DATA, cuda), cuda), batches, strict=True
    ):
        assert labels.device.type == "cuda"
        assert on_cuda.is_contiguous(memory_format=torch.channels_last)
        expected = DeviceTransform(DATA, CPU)(batch)
        torch.testing.assert_close(on_cuda.cpu(), expected, rtol=0, atol=1e-6)
