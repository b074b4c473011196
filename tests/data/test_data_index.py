"""The index: the same samples from every layout, kept, checked, refused where the data change."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import imagenets
import numpy as np
import pytest
from jpegs import jpeg

from sn_imagenet.data import index as indexing
from sn_imagenet.data import layouts
from sn_imagenet.data.decode import decode
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.indexed import IndexedSource


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(root: Path) -> tuple[IndexedSource, IndexedSource]:
    train, val = layouts.imagenet_train(root), layouts.imagenet_val(root)
    assert train is not None and val is not None
    return IndexedSource(train.open()), IndexedSource(val.open())


@pytest.mark.parametrize("layout", imagenets.LAYOUTS)
def test_every_layout_gives_the_same_samples(tmp_path: Path, layout: str) -> None:
    root = imagenets.LAYOUTS[layout](tmp_path / "data")
    for _ in range(2):  # scanned, then out of the kept index
        train, val = opened(root)
        assert train.classes == val.classes == tuple(sorted(list(imagenets.SYNSETS)[:4]))
        names = sorted(imagenets.TRAIN)
        assert len(train) == len(names)
        for i, name in enumerate(names):
            sample = train.open(i)
            assert np.array_equal(sample.pixels(), decode(imagenets.TRAIN[name]))
            assert train.classes[sample.label] == name.split("/")[0]
        pairs = sorted(zip(imagenets.VAL_CLASSES, imagenets.VAL, strict=True))
        for i, (wnid, name) in enumerate(pairs):
            sample = val.open(i)
            assert np.array_equal(sample.pixels(), decode(imagenets.VAL[name]))
            assert (val.classes[sample.label], val.read(i)) == (wnid, imagenets.VAL[name])
            assert name in val.index.where(i)
        assert [source.fingerprint() for source in (train, val)] == [
            source.fingerprint() for source in opened(imagenets.folders(tmp_path / "folders"))
        ]


def test_capital_folder_names(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    expected = [len(source) for source in opened(root)]
    for part in ("train", "val"):
        (root / part).rename(root / part.capitalize())
    assert [len(source) for source in opened(root)] == expected


def test_forked_and_spawned_workers_read_the_archive(tmp_path: Path) -> None:
    train, _ = opened(imagenets.tars(tmp_path))
    expected = [train.read(i) for i in range(len(train))]  # it is open when the workers start
    assert pickle.loads(pickle.dumps(train)).read(3) == expected[3]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(train.read, list(range(len(train))) * 5) == expected * 5


def test_the_order_of_folders_within_a_class(tmp_path: Path) -> None:
    """That of torchvision's ImageFolder, on which the ids of earlier runs rest."""
    from torchvision.datasets import ImageFolder

    for name in ("b.jpg", "a/z.jpg", "a-b/y.jpg", "a/c/x.JPEG", "a.png", "B.jpg"):
        imagenets.write({f"{cls}/{name}": jpeg(0) for cls in ("cat", "Dog")}, tmp_path / "d")
    index = layouts.folders(tmp_path / "d", "data.train").open()
    paths = [str(index.path(i)) for i in range(len(index.bad))]
    assert paths == [path for path, _ in ImageFolder(str(tmp_path / "d")).samples]


# The kept index -------------------------------------------------------------------------------


def test_it_lies_beside_the_data_or_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = imagenets.tars(tmp_path / "data")
    opened(root)
    beside = root / "ILSVRC2012_img_train.tar.index.npz"
    assert beside.exists() and not (tmp_path / "cache").exists()
    beside.unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root one may write everywhere
    opened(root)
    assert not beside.exists()
    assert [p.name.split("-")[0] for p in (tmp_path / "cache" / "sn-imagenet").iterdir()]
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert opened(moved)[1].fingerprint()["samples"] == 6  # val's went along


def test_an_index_that_is_kept_is_not_made_again(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    opened(root)
    part = layouts.imagenet_train(root)
    assert part is not None
    index = indexing.open_index(part.origin, lambda: pytest.fail("listed again"))
    bad = index.bad.copy()
    bad[[0, 5]] = True
    before = IndexedSource(index).fingerprint()
    indexing.save(replace(index, bad=bad))
    source = IndexedSource(part.open())
    after = source.fingerprint()
    assert (before["samples"], after["samples"]) == (12, 10)
    assert before["sha256"] != after["sha256"]
    assert after["left_out"] == ["n01440764_10.JPEG", "n01443537_9.JPEG"]
    names = [str(source.index.path(i).name) for i in source.chosen]
    assert len(source) == 10 and not set(names) & set(after["left_out"])
    kept = part.open()
    assert vars(kept)["sha256"] == replace(kept, bad=bad).sha256 == after["sha256"]


def add_file(root: Path) -> None:
    (root / "train" / "n01440764" / "more.JPEG").write_bytes(jpeg(0))


def remove_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "n01440764")


def rename_file(root: Path) -> None:
    first = next((root / "train" / "n01443537").iterdir())
    first.rename(first.with_name("other.JPEG"))


def add_class(root: Path) -> None:
    (root / "train" / "n99").mkdir()


@pytest.mark.parametrize("change", [add_file, remove_class, rename_file, add_class])
def test_folders_that_changed_are_refused(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    root = imagenets.folders(tmp_path)
    opened(root)
    change(root)
    with pytest.raises(DataError, match=r"changed since the index .*prepare_data.py \S+train$"):
        opened(root)


@pytest.mark.parametrize(
    "name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"]
)
def test_archives_that_changed_are_refused(tmp_path: Path, name: str) -> None:
    root = imagenets.tars(tmp_path)
    opened(root)
    os.utime(root / name, ns=(1, 1))
    with pytest.raises(DataError, match=f"{name} changed since"):
        opened(root)


def test_a_file_of_another_size_is_refused_when_it_is_read(tmp_path: Path) -> None:
    train, _ = opened(imagenets.folders(tmp_path))
    path = train.index.path(4)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match=rf"{path.name} has \d+ bytes, and had \d+ when its index"):
        train.open(4)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} cannot be read: .*No such file"):
        train.open(4)


def test_an_index_that_is_broken_or_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = imagenets.folders(tmp_path)
    opened(root)
    monkeypatch.setattr(indexing, "VERSION", 99)
    with pytest.raises(DataError, match=r"another version of this project\. Make it anew"):
        opened(root)
    kept = root / "train.index.npz"
    kept.write_bytes(kept.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train\.index\.npz is not a whole index"):
        opened(root)


# What the layouts refuse ----------------------------------------------------------------------


def test_labels_in_another_order_than_the_images_are_refused(tmp_path: Path) -> None:
    root = imagenets.kaggle(tmp_path)
    solution = root / "LOC_val_solution.csv"
    text = solution.read_text().replace("n01751748", "n?").replace("n01440764", "n01751748")
    solution.write_text(text.replace("n?", "n01440764"))
    with pytest.raises(DataError, match=r"00000001\.JPEG is of class n01440764, but ImageNet's"):
        opened(root)


def test_a_truth_that_is_missing_broken_or_too_short(tmp_path: Path) -> None:
    root = imagenets.flat_val(tmp_path)
    ids = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    ids.write_text("2\n3\n4\n1\n3\n")
    with pytest.raises(DataError, match=r"does not tell the class of ILSVRC2012_val_00000006"):
        opened(root)
    ids.with_name("meta.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"meta\.mat does not tell the classes"):
        opened(root)
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")
    with pytest.raises(DataError, match=r"Put ILSVRC2012_devkit_t12\.tar\.gz .* into"):
        opened(root)


def test_damaged_archives(tmp_path: Path) -> None:
    root = imagenets.tars(tmp_path)
    for name, length in (("ILSVRC2012_img_train.tar", 9000), ("ILSVRC2012_img_val.tar", 1000)):
        whole = (root / name).read_bytes()
        for part in (whole[:length], b"x" * 2000, b""):
            (root / name).write_bytes(part)
            with pytest.raises(DataError, match=f"{name} (is no whole tar|holds no image)"):
                opened(root)
        (root / name).write_bytes(whole)
    (root / "ILSVRC2012_img_train.tar.index.npz").unlink()
    shutil.copy(root / "ILSVRC2012_img_val.tar", root / "ILSVRC2012_img_train.tar")
    with pytest.raises(DataError, match="expected one tar for each class"):
        opened(root)


def test_folders_reached_twice_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    imagenets.write({"cat/1.jpg": jpeg(0), "dog/1.jpg": jpeg(1)}, folder)
    part = layouts.folders(folder, "data.train")
    for link, target in (("cat/x", "."), ("cat/y", ".."), ("dog/z", "../cat"), ("eel", "dog")):
        (folder / link).symlink_to(target)
        with pytest.raises(DataError, match="are the same folder: its images would be counted"):
            part.scan()
        (folder / link).unlink()
    outside = tmp_path / "elsewhere"
    imagenets.write({"2.jpg": jpeg(2)}, outside)
    (folder / "dog" / "more").symlink_to(outside)
    (folder / "eel").symlink_to(outside.parent / "other")
    imagenets.write({"3.jpg": jpeg(3)}, tmp_path / "other")
    assert len(IndexedSource(part.open())) == 4  # links that lead elsewhere are followed
