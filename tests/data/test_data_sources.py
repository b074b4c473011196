"""Sources, their fingerprints, and one clear error for each kind of bad input."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import imagenets
import numpy as np
import pytest
import torch
import torchvision
from disks import read_only
from jpegs import jpeg
from PIL import Image
from small_configs import PLAIN, data_config
from torchvision.datasets import CIFAR10

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data import sources
from sn_imagenet.data.datasets import DataSets, build
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import index_paths
from sn_imagenet.data.loaders import train_loader
from sn_imagenet.data.scanning import IMG_EXTENSIONS
from sn_imagenet.errors import ConfigError, UserError


def test_digits_split_is_fixed(composed: Callable[..., ExperimentConfig], digits: DataSets) -> None:
    config = composed("data=digits")
    assert (len(digits.train), len(digits.val)) == (1397, 400)
    assert digits.classes == tuple("0123456789")
    for dataset in (digits.train, digits.val):
        shares = np.bincount(dataset.source.labels) / len(dataset)
        np.testing.assert_allclose(shares, 0.1, atol=0.005)
    assert build(config.data, config.augment, seed=7).fingerprint == digits.fingerprint
    # All committed results on digits were measured with this split.
    assert digits.fingerprint["train"]["sha256"].startswith("8674184c5734cf0b")
    together = np.concatenate([d.source.images.numpy() for d in (digits.train, digits.val)])
    assert len(np.unique(together.reshape(1797, -1), axis=0)) == 1797


@pytest.mark.parametrize("unreadable", ["train", "train/cat"])
def test_unreadable_folder_gives_a_one_line_error(
    unreadable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        monkeypatch.setenv("XDG_CACHE_HOME", name)
        monkeypatch.setattr(tempfile, "tempdir", name)  # where the lock goes, despite TMPDIR
        root.chmod(0o1777)
        for split in ("train", "val"):
            (root / split / "cat").mkdir(parents=True)
            (root / split / "cat" / "0.jpg").write_bytes(jpeg(0))
        data = data_config("imagefolder", train=str(root / "train"), val=str(root / "val"))
        folder = root / unreadable
        importlib.import_module("sn_imagenet.data.sources.imagefolder")  # while still permitted
        with read_only(folder, 0), pytest.raises(DataError) as caught:
            sources.open_source(data)
        assert str(caught.value) == (
            f"data=imagefolder cannot be read: [Errno 13] Permission denied: '{folder}'"
        )


def test_extensions_match_torchvision() -> None:
    assert IMG_EXTENSIONS == torchvision.datasets.folder.IMG_EXTENSIONS


def test_digits_are_normalized_by_their_own_mean_and_std(
    composed: Callable[..., ExperimentConfig],
) -> None:
    config = composed("data=digits", "augment=none")
    data = build(config.data, config.augment, seed=0)
    images = torch.stack([data.train[0, i][0] for i in range(len(data.train))])
    assert images.shape == (1397, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])
    torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(images.std(), torch.tensor(1.0), atol=1e-3, rtol=0)


def delete_index(folder: Path) -> None:
    index_paths(folder)[0].unlink()


def test_fingerprint_changes_with_renamed_resized_moved_and_missing_files(
    open_folders: Callable[[], DataSets], folders: Path
) -> None:
    def new_fingerprint() -> str:
        delete_index(folders / "train")
        return open_folders().fingerprint["train"]["sha256"]

    cat, dog = folders / "train" / "cat", folders / "train" / "dog"
    fingerprints = [open_folders().fingerprint["train"]["sha256"], new_fingerprint()]
    assert fingerprints[0] == fingerprints[1] == open_folders().fingerprint["train"]["sha256"]
    assert open_folders().fingerprint["val"]["samples"] == 5
    (cat / "0.jpg").rename(cat / "00.jpg")
    fingerprints.append(new_fingerprint())
    (cat / "00.jpg").write_bytes(jpeg(0, size=(30, 30)))
    fingerprints.append(new_fingerprint())
    (cat / "00.jpg").rename(dog / "00.jpg")
    fingerprints.append(new_fingerprint())
    (dog / "00.jpg").unlink()
    fingerprints.append(new_fingerprint())
    assert len(set(fingerprints)) == 5


SOURCE = """
import numpy as np
import torch
from sn_imagenet.data.arrays import ArraySource

PATH_OPTIONS = ("root",)


def open_source(data):
    images = torch.full((4, 3, 8, 8), int(data.root), dtype=torch.uint8)
    source = ArraySource(images, np.arange(4), tuple("abcd"), stored=images.numpy())
    return source, source
"""


def test_adding_a_data_set_takes_one_file_and_one_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gray.py").write_text(SOURCE)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    data = data_config("gray", root="51", image_size=8, resize_size=8, mean=(0, 0, 0))
    opened = build(data, PLAIN, seed=0)
    assert (len(opened.train), opened.classes) == (4, tuple("abcd"))
    torch.testing.assert_close(opened.val[0, 3][0][0], torch.full((8, 8), 0.2 / 0.229))
    with pytest.raises(DataError, match=r"data\.train=x would not be read.*data\.root=DIR"):
        build(data_config("gray", train="x"), PLAIN, seed=0)


# Bad input ------------------------------------------------------------------------------------


def test_empty_class_folder_is_refused(open_folders: Callable[[], DataSets], folders: Path) -> None:
    (folders / "train" / "bat").mkdir()
    (folders / "train" / "bat" / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match="no image files in class folder bat") as caught:
        open_folders()
    assert isinstance(caught.value, UserError)
    assert "data.train" in str(caught.value)


def test_different_classes_of_train_and_val_are_refused(
    open_folders: Callable[[], DataSets], folders: Path
) -> None:
    (folders / "val" / "eel").rename(folders / "val" / "fox")
    with pytest.raises(DataError, match=r"only in \S+train: eel; only in \S+val: fox"):
        open_folders()
    for i in range(9):
        shutil.copytree(folders / "train" / "cat", folders / "train" / f"more{i}")
    delete_index(folders / "train")
    with pytest.raises(DataError, match="eel, more0, more1, more2, more3 and 5 more"):
        open_folders()


def test_folders_that_are_missing_empty_or_not_given(
    open_folders: Callable[[], DataSets], folders: Path
) -> None:
    shutil.rmtree(folders / "val")
    with pytest.raises(DataError, match=r"val \(data.val\): there is no such folder"):
        open_folders()
    (folders / "val").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        open_folders()
    for given_train, missing in ((None, "data.train"), (str(folders / "train"), "data.val")):
        data = data_config("imagefolder", train=given_train)
        with pytest.raises(DataError, match=f"needs {missing}"):
            build(data, PLAIN, seed=0)


def test_unknown_source_lists_the_known_ones() -> None:
    message = r"data\.source=mnist: expected one of cifar10, digits, imagefolder, imagenet"
    with pytest.raises(ConfigError, match=message):
        build(data_config("mnist"), PLAIN, seed=0)


def replace_by_text(path: Path) -> None:
    path.write_text("this is not an image")


def truncate(path: Path) -> None:
    whole = jpeg(1, size=(200, 200))
    path.write_bytes(whole[: len(whole) // 2])
    with Image.open(path) as image:
        assert image.size == (200, 200)  # the header alone is valid


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [replace_by_text, truncate])
def test_broken_file_is_named(
    open_folders: Callable[[], DataSets],
    folders: Path,
    damage: Callable[[Path], None],
    workers: int,
) -> None:
    broken = folders / "train" / "dog" / "4.jpg"
    damage(broken)
    loader = train_loader(
        open_folders().train, global_batch=12, rank=0, world_size=1, seed=0, workers=workers
    )
    with pytest.raises(DataError) as caught:
        list(loader.epoch(0))
    message = str(caught.value)
    # Its position in the sorted files, its class, and how to fix it.
    assert message.startswith(f"in epoch 1: {broken} cannot be read as an image (")
    assert "sample 6, class dog. Nothing is substituted for it" in message
    assert message.endswith(f"python scripts/prepare_data.py {folders / 'train'} --mark")
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1


def imagenet(root: Path | None) -> DataSets:
    data = data_config("imagenet", root=root and str(root))
    return build(data, PLAIN, seed=0)


def test_missing_imagenet_names_the_alternatives(
    composed: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for value in (None, "", str(tmp_path / "absent"), str(tmp_path)):
        monkeypatch.delenv("IMAGENET_ROOT", raising=False)
        if value is not None:
            monkeypatch.setenv("IMAGENET_ROOT", value)
        config = composed()
        with pytest.raises(DataError) as caught:
            build(config.data, config.augment, seed=0)
        for words in ("data.root", "IMAGENET_ROOT", "data=digits model=resnet50_mini"):
            assert words in str(caught.value)


def test_imagenet_requires_its_classes_in_both_splits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    imagenets.folders(tmp_path)
    with pytest.raises(DataError, match=r"has 4 classes, but ImageNet-1k has 1000\. For another"):
        imagenet(tmp_path)
    monkeypatch.setattr("sn_imagenet.data.sources.imagenet.IMAGENET_CLASSES", 4)
    data = imagenet(tmp_path)
    assert (len(data.classes), len(data.train), len(data.val)) == (4, 12, 6)
    (tmp_path / "val" / "n01440764").rename(tmp_path / "val" / "n99999999")
    delete_index(tmp_path / "val")
    with pytest.raises(DataError, match=r"train: n01440764; only in .*val: n99999999\."):
        imagenet(tmp_path)


# CIFAR-10 -------------------------------------------------------------------------------------


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty images in CIFAR-10's format. Replaces the original URL and checksums."""
    batches = tmp_path / CIFAR10.base_folder
    batches.mkdir()

    def write(name: str, values: dict[str, object]) -> str:
        (batches / name).write_bytes(pickle.dumps(values))
        return hashlib.md5((batches / name).read_bytes()).hexdigest()

    for part in ("train_list", "test_list"):
        listed = []
        for i, (name, _) in enumerate(getattr(CIFAR10, part)):
            pixels = np.random.default_rng(i).integers(0, 256, (10, 3072), dtype=np.uint8)
            listed.append([name, write(name, {"data": pixels, "labels": list(range(10))})])
        monkeypatch.setattr(CIFAR10, part, listed)
    names = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": names})
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    return tmp_path


def test_cifar10_is_read_or_its_absence_explained(cifar_folder: Path) -> None:
    def open_cifar() -> DataSets:
        data = data_config("cifar10", root=str(cifar_folder), image_size=32, resize_size=32)
        return build(data, PLAIN, seed=0)

    data = open_cifar()
    assert (len(data.train), len(data.val), data.classes[3]) == (50, 10, "class3")
    image, label = data.train[0, 13]
    stored = np.random.default_rng(1).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)[3]
    expected = torch.from_numpy(stored) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    expected /= torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(image, expected)
    assert label == 3
    shutil.rmtree(cifar_folder / CIFAR10.base_folder)
    with pytest.raises(DataError) as caught:
        open_cifar()
    for words in (str(cifar_folder), "CIFAR10_ROOT", "refused", CIFAR10.url):
        assert words in str(caught.value)
