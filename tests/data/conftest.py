"""Small data sets on disk, and the photographs beside the project if they exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from jpegs import jpeg
from small_configs import augment_config, data_config

from sn_imagenet.config import ExperimentConfig, from_hydra
from sn_imagenet.data.datasets import DataSets, build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def composed() -> Callable[..., ExperimentConfig]:
    """``composed("data=digits", ...)``: the config as train.py composes it."""

    def compose_with(*overrides: str) -> ExperimentConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            return from_hydra(compose("config", list(overrides)))

    return compose_with


@pytest.fixture(scope="session")
def digits(composed: Callable[..., ExperimentConfig]) -> DataSets:
    config = composed("data=digits")
    return build(config.data, config.augment, seed=0)


def link_photos(name: str, factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the photographs, so that no index beside them is read or written."""
    folder = ROOT.parent / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"the photographs of {name} are not available")
    linked = factory.mktemp(name)
    for split in filter(Path.is_dir, folder.iterdir()):
        (linked / split.name).symlink_to(split)
    return linked


@pytest.fixture(scope="session")
def cifar_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real 32x32 photographs: train/ and val/ with ten class folders each."""
    return link_photos("cifar10_small", tmp_path_factory)


@pytest.fixture(scope="session")
def imagenet_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real ImageNet photographs: train/ with 200 WNID folders of one photograph each."""
    return link_photos("imagenet_sample", tmp_path_factory)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """train/ (12 images) and val/ (5 images) with the classes cat, dog and eel."""
    for split, count in (("train", 12), ("val", 5)):
        for i in range(count):
            file = tmp_path / split / ("cat", "dog", "eel")[i % 3] / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(i))
    return tmp_path


@pytest.fixture
def open_folders(folders: Path) -> Callable[[], DataSets]:
    """A function that opens ``folders`` in their current state, at 8x8 pixels."""
    data = data_config(
        "imagefolder",
        train=str(folders / "train"),
        val=str(folders / "val"),
        image_size=8,
        resize_size=10,
    )
    augment = augment_config(
        "random_resized", flip=True, lighting=0.1, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3]
    )
    return lambda: build(data, augment, seed=0)
