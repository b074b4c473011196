"""Crops in uint8 and their batches on the device: the numbers of torchvision's transforms."""

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
from sn_imagenet.data.pixels import Normalizer, StoredBatch, on_device
from sn_imagenet.data.seeding import seeded
from sn_imagenet.data.transforms import EIGENVALUES, EIGENVECTORS, training_crop, validation_crop

CPU = torch.device("cpu")
DATA = data_config("imagefolder")
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
OFFICIAL = augment_config("random_resized", True, 0.1, scale=SCALE, ratio=RATIO)


class Lighting(nn.Module):
    """As a transform of one image: the shift that is drawn, added to it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        alpha = torch.randn(3) * OFFICIAL.lighting_std
        shift = torch.tensor(EIGENVECTORS) * torch.tensor(EIGENVALUES) * alpha
        return image + shift.sum(dim=1)[:, None, None]


TO_FLOAT = (v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True))
NORMALIZE = v2.Normalize(list(DATA.mean), list(DATA.std))
# What torchvision's transforms, one image at a time, make of a photograph.
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


def finished(
    photos: list[np.ndarray],
    crops: list[CropParams],
    cut: Callable[[np.ndarray, CropParams, torch.Tensor], None],
    side: int = 224,
) -> torch.Tensor:
    images = torch.full((len(crops), side, side, 3), 77, dtype=torch.uint8)
    for photo, crop, out in zip(photos, crops, images, strict=True):
        cut(photo, crop, out)
    [(batch, _)] = on_device([batch_of(images, crops)], Normalizer(DATA, CPU), CPU)
    return batch


@pytest.fixture(scope="module")
def photographs(imagenet_photos: Path) -> list[np.ndarray]:
    pixels = []
    for path in sorted((imagenet_photos / "train").rglob("*.JPEG")):
        with Image.open(path) as image:
            pixels.append(np.array(image.convert("RGB")))
    return pixels


def drawn(draw: Callable[[int, int], CropParams], photos: list[np.ndarray]) -> list[CropParams]:
    crops = []
    for seed, photo in enumerate(photos):
        with seeded(seed):
            crops.append(draw(*photo.shape[:2]))
    return crops


def transformed(transform: v2.Compose, photos: list[np.ndarray]) -> torch.Tensor:
    images = []
    for seed, photo in enumerate(photos):
        with seeded(seed):
            images.append(transform(Image.fromarray(photo)))
    return torch.stack(images)


def test_training_gives_the_numbers_of_torchvision(photographs: list[np.ndarray]) -> None:
    crops = drawn(training_crop(DATA, OFFICIAL), photographs)
    assert {crop.flip for crop in crops} == {False, True}
    expected = transformed(TRAINING, photographs)
    assert torch.equal(finished(photographs, crops, crop_exact), expected)


def test_validation_gives_the_numbers_of_torchvision(photographs: list[np.ndarray]) -> None:
    odd = [photo[: 150 + i, : 400 - 3 * i] for i, photo in enumerate(photographs[:40])]
    crops = drawn(validation_crop(DATA), odd)
    assert torch.equal(finished(odd, crops, crop_exact), transformed(VALIDATION, odd))


def test_padded_crops_give_the_numbers_of_torchvision(photographs: list[np.ndarray]) -> None:
    data = data_config("cifar10", image_size=32, resize_size=40)
    crops = drawn(training_crop(data, augment_config("pad", True, padding=4)), photographs)
    assert len({crop.move for crop in crops}) > 50
    batch = finished(photographs, crops, crop_exact, side=32)
    assert torch.equal(batch, transformed(PADDED, photographs))


def test_the_shorter_side_is_drawn_and_the_crop_from_all_of_it(
    photographs: list[np.ndarray],
) -> None:
    """He et al. 2016: the draws cover their ranges, the pixels are those of torchvision."""
    draw = training_crop(DATA, augment_config("shorter_side", between=[256, 480]))
    with seeded(0):
        cuts = [draw(300, 600) for _ in range(3000)]
    assert {cut.size[0] for cut in cuts} == set(range(256, 481))
    assert all(cut.size[1] == 2 * cut.size[0] for cut in cuts)
    places = np.array([np.divide(cut.corner, np.subtract(cut.size, 224)) for cut in cuts])
    assert places.min() == 0 and places.max() == 1
    np.testing.assert_allclose(places.mean(axis=0), 0.5, atol=0.03)
    out = torch.empty(224, 224, 3, dtype=torch.uint8)
    for photo, cut in zip(photographs[:20], drawn(draw, photographs[:20]), strict=True):
        crop_exact(photo, cut, out)
        resized = v2.functional.resize(Image.fromarray(photo), [min(cut.size)])
        expected = v2.functional.crop(resized, *cut.corner, 224, 224)
        assert np.array_equal(out.numpy(), np.asarray(expected))


@pytest.mark.parametrize("side", [1, 5, 32])
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("shifts", [False, True])
def test_the_compiled_normalization_gives_the_numbers_of_the_operators(
    monkeypatch: pytest.MonkeyPatch, side: int, flips: bool, shifts: bool
) -> None:
    if pixels._compiled() is None:
        pytest.skip("no C++ compiler")
    torch.manual_seed(side)
    batch = StoredBatch(
        torch.randint(0, 256, (7, side, side, 3), dtype=torch.uint8),
        torch.zeros(7, dtype=torch.int64),
        torch.rand(7) < 0.5 if flips else None,
        torch.randn(7, 3) if shifts else None,
    )
    compiled = Normalizer(DATA, CPU)(batch)
    assert compiled.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(pixels, "_compiled", lambda: None)
    assert torch.equal(compiled, Normalizer(DATA, CPU)(batch))


def test_fast_differs_by_one_in_255_at_most(photographs: list[np.ndarray]) -> None:
    """The figures in the documentation: about 3 % of the values, by 1."""
    crops = drawn(training_crop(DATA, OFFICIAL), photographs)
    exact, fast = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    shares = []
    for photo, crop in zip(photographs, crops, strict=True):
        crop_exact(photo, crop, exact)
        crop_fast(photo, crop, fast)
        difference = (exact.int() - fast.int()).abs()
        assert difference.max() <= 1
        shares.append((difference > 0).float().mean().item())
    assert 0 < np.mean(shares) < 0.05


def test_the_validation_may_resize_bicubically() -> None:
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


def test_floats_are_cut_as_they_are() -> None:
    data = data_config("digits", image_size=16, resize_size=16)
    padded = v2.Compose([v2.RandomCrop(16, padding=1), v2.Normalize(data.mean, data.std)])
    draw = training_crop(data, augment_config("pad", padding=1))
    stored = torch.rand(3, 16, 16)
    before = stored.clone()
    for seed in range(20):
        with seeded(seed):
            crop = draw(16, 16)
        with seeded(seed):
            expected = padded(stored)
        out = torch.full((1, 3, 16, 16), 7.0)
        crop_float(stored, crop, out[0])
        batch = StoredBatch(out, torch.zeros(1, dtype=torch.int64), None, None)
        assert torch.equal(Normalizer(data, CPU)(batch)[0], expected)
    assert torch.equal(stored, before)
    box = CropParams(box=(2, 3, 8, 10), size=(16, 16))
    crop_float(stored, box, out[0])
    expected = v2.functional.resize(stored[:, 2:10, 3:13], [16, 16], antialias=True)
    assert torch.equal(out[0], expected)


def test_normalizing_is_the_formula_in_float64() -> None:
    crops = [
        CropParams(None, (4, 4), flip=i % 2 == 0, shift=(0.1 * i, -0.2, 0.3)) for i in range(4)
    ]
    images = torch.randint(0, 256, (4, 4, 4, 3), dtype=torch.uint8)
    batch = Normalizer(DATA, CPU)(batch_of(images, crops)).double().numpy()
    for i, crop in enumerate(crops):
        pixels = images[i].numpy().astype(np.float64)[:, :: -1 if crop.flip else 1] / 255
        expected = (pixels + np.array(crop.shift or 0) - DATA.mean) / np.array(DATA.std)
        np.testing.assert_allclose(batch[i], expected.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_cuda_are_those_of_the_cpu() -> None:
    cuda = torch.device("cuda")
    batches = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=generator)
        crops = [CropParams(None, (64, 64), flip=i % 2 == 0, shift=(0.1, 0.2, i)) for i in range(8)]
        batches.append(batch_of(images, crops))
    pinned = [StoredBatch(*(part.pin_memory() for part in batch)) for batch in batches]
    for (there, labels), batch in zip(
        on_device(pinned, Normalizer(DATA, cuda), cuda), batches, strict=True
    ):
        assert labels.device.type == "cuda"
        assert there.is_contiguous(memory_format=torch.channels_last)
        expected = Normalizer(DATA, CPU)(batch)
        torch.testing.assert_close(there.cpu(), expected, rtol=0, atol=1e-6)
