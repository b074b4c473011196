"""Folders of images without classes: any depth, EXIF orientation, held-out images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.datasets import DataSets, build
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.sources.images import read_image

Build = Callable[..., DataSets]


def noise(seed: int, height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """25 images in two folders, and files that are none."""
    for number in range(25):
        path = tmp_path / "train" / ("deep/er" if number % 2 else ".") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number)).save(path)
    (tmp_path / "train" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "._00.png").write_bytes(b"a hidden file of a file system")
    return tmp_path / "train"


@pytest.fixture
def opened(composed: Callable[..., ExperimentConfig]) -> Build:
    def build_with(*overrides: str, seed: int = 0) -> DataSets:
        config = composed("data=images", "data.image_size=8", *overrides)
        return build(config.data, config.augment, seed)

    return build_with


def names(data: DataSets) -> tuple[list[str], list[str]]:
    assert data.val is not None
    return list(data.train.source.names), list(data.val.source.names)  # type: ignore[attr-defined]


def test_a_tenth_is_held_out_the_same_for_every_seed(opened: Build, folder: Path) -> None:
    train, val = names(opened(f"data.train={folder}"))
    assert len(train) == 23 and len(val) == 2
    assert sorted(train + val) == sorted(
        f"{'deep/er/' if n % 2 else ''}{n:02}.png" for n in range(25)
    )
    assert (train, val) == names(opened(f"data.train={folder}", seed=1))
    whole, own = names(opened(f"data.train={folder}", f"data.val={folder / 'deep'}"))
    assert len(whole) == 25 and own == [f"er/{n:02}.png" for n in range(1, 25, 2)]


def test_samples_are_pixels_of_the_center(opened: Build, folder: Path) -> None:
    data = opened(f"data.train={folder}", "data.image_size=12")
    images, label = data.train[0, 0]
    expected = noise(int(Path(names(data)[0][0]).stem))[:, 4:16]
    np.testing.assert_allclose(images.permute(1, 2, 0).numpy(), expected, atol=1e-4)
    assert label == 0 and data.classes == ("image",)


@pytest.mark.parametrize(
    ("orientation", "corner"), list(enumerate(2 * ("tl", "tr", "br", "bl"), start=1))
)
def test_images_are_upright(orientation: int, corner: str, tmp_path: Path) -> None:
    """EXIF 2.3, Sec. 4.6.4: where the stored image's first row and column are shown."""
    stored = np.zeros((12, 20, 3), np.uint8)
    stored[0, 0] = 255
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    shown = read_image(tmp_path / "turned.png")[..., 0]
    assert shown.shape == ((12, 20) if orientation < 5 else (20, 12))
    row, column = np.argwhere(shown)[0]
    assert ("t" if row == 0 else "b") + ("l" if column == 0 else "r") == corner


def test_the_fingerprint_covers_names_and_sizes(opened: Build, folder: Path) -> None:
    before = opened(f"data.train={folder}").fingerprint
    assert before["train"]["samples"] == 23 and before["val"]["samples"] == 2
    assert opened(f"data.train={folder}").fingerprint == before
    Image.fromarray(noise(99, 40, 40)).save(folder / "00.png")
    assert opened(f"data.train={folder}").fingerprint != before


def test_unusable_folders_and_files_are_named(opened: Build, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    Image.fromarray(noise(0)).save(tmp_path / "one" / "one.png")
    for value, message in (
        ("null", r"data.train=None: there is no such folder"),
        (tmp_path / "absent", r"data.train=.*absent: there is no such folder"),
        (tmp_path / "empty", r"data.train=.*empty: no images in it or below; expected .jpg"),
        (tmp_path / "one", r"data.train=.*one has one image: give more, or data.val=DIR"),
    ):
        with pytest.raises(DataError, match=message):
            opened(f"data.train={value}")
    data = opened(f"data.train={folder}")
    (folder / names(data)[0][7]).write_bytes(b"broken")
    with pytest.raises(DataError, match=rf"in epoch 3: .*{names(data)[0][7]} cannot be read as an"):
        data.train[2, 7]
    (folder / names(data)[0][7]).unlink()
    os.mkfifo(folder / names(data)[0][7])
    with pytest.raises(DataError, match="not a regular file"):
        data.train[2, 7]
