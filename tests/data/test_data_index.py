"""The index gives the same samples for every layout, is stored, and detects changed data."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shlex
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import imagenets
import pytest
from disks import size_limit
from jpegs import jpeg

from sn_imagenet.data import index as indexing
from sn_imagenet.data import layouts
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.prepare import prepare_data


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def open_sources(root: Path) -> tuple[IndexedSource, IndexedSource]:
    splits = layouts.find_imagenet(root)
    return layouts.open_splits(splits["training"], splits["validation"])


def mark(index: indexing.Index, *entries: int) -> Path:
    bad = index.bad.copy()
    bad[list(entries)] = True
    return indexing.save_index(replace(index, bad=bad))


@pytest.mark.parametrize("layout", imagenets.LAYOUTS)
def test_every_layout_gives_the_same_samples(tmp_path: Path, layout: str) -> None:
    root = imagenets.LAYOUTS[layout](tmp_path / "data")
    for _ in range(2):  # first scanned, then loaded from the stored index
        train, val = open_sources(root)
        assert train.classes == val.classes == tuple(sorted(list(imagenets.SYNSETS)[:4]))
        names = sorted(imagenets.TRAIN)
        assert len(train) == len(names)
        for i, name in enumerate(names):
            sample = train.open(i)
            assert sample.stored == imagenets.TRAIN[name]
            assert train.classes[sample.label] == name.split("/")[0]
        pairs = sorted(zip(imagenets.VAL_CLASSES, imagenets.VAL, strict=True))
        for i, (wnid, name) in enumerate(pairs):
            sample = val.open(i)
            assert sample.stored == imagenets.VAL[name]
            assert (val.classes[sample.label], val.read(i)) == (wnid, imagenets.VAL[name])
            assert name in val.index.location(i)
        assert [source.fingerprint() for source in (train, val)] == [
            source.fingerprint() for source in open_sources(imagenets.folders(tmp_path / "folders"))
        ]


def test_finds_capitalized_folder_names(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    expected = [len(source) for source in open_sources(root)]
    for split in ("train", "val"):
        (root / split).rename(root / split.capitalize())
    assert [len(source) for source in open_sources(root)] == expected


@pytest.mark.parametrize("layout", ["tars", "parquet"])
def test_forked_and_spawned_workers_read_the_archive(tmp_path: Path, layout: str) -> None:
    train, _ = open_sources(imagenets.LAYOUTS[layout](tmp_path))
    expected = [train.read(i) for i in range(len(train))]  # opens it before the workers start
    assert pickle.loads(pickle.dumps(train)).read(3) == expected[3]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(train.read, list(range(len(train))) * 5) == expected * 5


def test_order_of_folders_within_a_class(tmp_path: Path) -> None:
    """Same as torchvision's ImageFolder, because earlier runs depend on these ids."""
    from torchvision.datasets import ImageFolder

    for name in ("b.jpg", "a/z.jpg", "a-b/y.jpg", "a/c/x.JPEG", "a.png", "B.jpg"):
        imagenets.write({f"{cls}/{name}": jpeg(0) for cls in ("cat", "Dog")}, tmp_path / "d")
    index = layouts.split_at(tmp_path / "d", "data.train").open()
    paths = [str(index.path(i)) for i in range(len(index.bad))]
    assert paths == [path for path, _ in ImageFolder(str(tmp_path / "d")).samples]


# The stored index -------------------------------------------------------------------------------


def test_index_is_stored_beside_the_data_or_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = imagenets.tars(tmp_path / "data")
    open_sources(root)
    beside = root / "ILSVRC2012_img_train.tar.index.npz"
    assert beside.exists() and not (tmp_path / "cache").exists()
    beside.unlink()
    block(beside)
    open_sources(root)
    assert [p.name.split("-")[0] for p in (tmp_path / "cache" / "sn-imagenet").iterdir()]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "root"))
    shutil.rmtree(beside)
    root.chmod(0o555)  # binds all but root, who keeps to it
    open_sources(root)
    root.chmod(0o755)
    assert not beside.exists()
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert open_sources(moved)[1].fingerprint()["samples"] == 6  # val's index moved along


def test_stored_index_is_reused(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    open_sources(root)
    split = layouts.find_imagenet(root)["training"]
    index = split._replace(scan=lambda: pytest.fail("listed again")).open()
    before = IndexedSource(index).fingerprint()
    mark(index, 0, 5)
    source = IndexedSource(split.open())
    after = source.fingerprint()
    assert (before["samples"], after["samples"]) == (12, 10)
    assert before["sha256"] != after["sha256"]
    assert after["left_out"] == ["n01440764_10.JPEG", "n01443537_9.JPEG"]
    names = [str(source.index.path(i).name) for i in source.entries]
    assert len(source) == 10 and not set(names) & set(after["left_out"])
    stored = split.open()
    assert vars(stored)["sha256"] == replace(stored, bad=stored.bad).sha256 == after["sha256"]


def add_file(root: Path) -> None:
    (root / "train" / "n01440764" / "more.JPEG").write_bytes(jpeg(0))


def remove_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "n01440764")


def rename_file(root: Path) -> None:
    first = next((root / "train" / "n01443537").iterdir())
    first.rename(first.with_name("other.JPEG"))


def add_class(root: Path) -> None:
    imagenets.write({"n99/0.JPEG": jpeg(0)}, root / "train")


@pytest.mark.parametrize("change", [add_file, remove_class, rename_file, add_class])
def test_changed_folders_are_refused(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    root = imagenets.folders(tmp_path / "it's mine")
    open_sources(root)
    change(root)
    with pytest.raises(DataError, match=r"changed since the index .*prepare_data\.py ") as caught:
        open_sources(root)
    command = str(caught.value).partition("Rebuild it: ")[2]
    assert shlex.split(command)[-1] == str(root / "train")


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_changed_archives_are_refused(tmp_path: Path, name: str) -> None:
    root = imagenets.tars(tmp_path)
    open_sources(root)
    changed = imagenets.TRAIN if "train" in name else imagenets.VAL
    first = next(iter(changed))
    (root / name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(changed, first, jpeg(0, size=(30, 30)))
        imagenets.tars(root)
    with pytest.raises(DataError, match=f"{name} changed since"):
        open_sources(root)


@pytest.mark.parametrize("layout", ["folders", "tars", "flat_val"])
def test_a_copy_is_no_change_and_keeps_the_marks(tmp_path: Path, layout: str) -> None:
    root = imagenets.LAYOUTS[layout](tmp_path / "data")
    train, _ = open_sources(root)
    mark(train.index, 0, 5)
    fingerprint = open_sources(root)[0].fingerprint()
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy)
    for _ in range(2):  # listed again, then loaded
        assert open_sources(tmp_path / "copy")[0].fingerprint() == fingerprint


def block(path: Path) -> None:
    """Let nobody write ``path``, not even root."""
    (path / "in the way").mkdir(parents=True)


def test_the_index_that_fits_is_read_and_of_two_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another user's index is beside the data, where one may not write."""
    root = imagenets.folders(tmp_path / "data")
    train, _ = open_sources(root)
    beside, cached = indexing.index_paths(root / "train")
    replace_file = os.replace

    def refuse(source: Path, target: Path) -> None:
        if target == beside:
            raise PermissionError(13, "Permission denied", str(target))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    assert mark(train.index, 0, 5) == cached
    assert len(open_sources(root)[0]) == 10
    add_file(root)  # both are stale
    with pytest.raises(DataError, match="changed since the index"):
        open_sources(root)
    assert prepare_data(root, verify=True, mark=False, workers=1)
    assert f"  index: {cached}\n" in capsys.readouterr().out and beside.exists()
    assert len(open_sources(root)[0]) == 13


@pytest.mark.parametrize("full", [False, True])
def test_nowhere_to_write_the_index(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, full: bool
) -> None:
    root = imagenets.folders(tmp_path / "data")
    if not full:
        for path in indexing.index_paths(root / "train"):
            block(path)
    with size_limit(300) if full else nullcontext():
        train, _ = open_sources(root)  # trains without keeping it, and says so
        assert len(train) == 12 and "the next start lists" in caplog.text
        with pytest.raises(DataError, match=r"can be written neither to .* nor to .*index\.npz"):
            mark(train.index, 0)
    assert not list(root.glob("**/*.tmp")) and not list(root.glob("**/.*.tmp"))


def test_the_rest_of_a_killed_write_is_cleared(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_sources(root)
    assert list(root.glob(".train.index.npz*"))
    open_sources(root)
    assert not list(root.glob(".train.index.npz*"))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_pipes_and_devices_are_no_index(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path / "data")
    os.mkfifo(root / "train.index.npz")
    (root / "val.index.npz").symlink_to("/dev/zero")
    assert len(open_sources(root)[0]) == 12


def test_file_with_another_size_is_refused_on_reading(tmp_path: Path) -> None:
    train, _ = open_sources(imagenets.folders(tmp_path))
    path = train.index.path(4)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match=rf"{path.name} has \d+ bytes, but had \d+ when its index"):
        train.open(4)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} cannot be read: .*No such file"):
        train.open(4)


def test_broken_index_or_index_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = imagenets.folders(tmp_path)
    open_sources(root)
    monkeypatch.setattr(indexing, "VERSION", 99)
    with pytest.raises(DataError, match=r"another version of this project\. Rebuild it"):
        open_sources(root)
    stored = root / "train.index.npz"
    stored.write_bytes(stored.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train\.index\.npz is not a complete index"):
        open_sources(root)


# What the layouts refuse ----------------------------------------------------------------------


def test_labels_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    root = imagenets.kaggle(tmp_path)
    solution = root / "LOC_val_solution.csv"
    text = solution.read_text().replace("n01751748", "n?").replace("n01440764", "n01751748")
    solution.write_text(text.replace("n?", "n01440764"))
    with pytest.raises(DataError, match=r"00000001\.JPEG has class n01440764, but n01751748"):
        open_sources(root)


def test_missing_broken_or_short_labels_file(tmp_path: Path) -> None:
    root = imagenets.flat_val(tmp_path)
    ids = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    ids.write_text("2\n3\n4\n1\n3\n")
    with pytest.raises(DataError, match=r"has no label for ILSVRC2012_val_00000006"):
        open_sources(root)
    ids.with_name("meta.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"meta\.mat does not hold the validation labels"):
        open_sources(root)
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")
    with pytest.raises(DataError, match=r"put ILSVRC2012_devkit_t12\.tar\.gz .* into"):
        open_sources(root)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    root = imagenets.tars(tmp_path)
    for name, length in (("ILSVRC2012_img_train.tar", 9000), ("ILSVRC2012_img_val.tar", 1000)):
        whole = (root / name).read_bytes()
        for part in (whole[:length], b"x" * 2000, b""):
            (root / name).write_bytes(part)
            with pytest.raises(DataError, match=f"{name} (is not a complete tar|contains no)"):
                open_sources(root)
        (root / name).write_bytes(whole)
    (root / "ILSVRC2012_img_train.tar.index.npz").unlink()
    shutil.copy(root / "ILSVRC2012_img_val.tar", root / "ILSVRC2012_img_train.tar")
    with pytest.raises(DataError, match="expected one tar per class"):
        open_sources(root)


def test_missing_changed_and_other_parquet_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"00000-of-00003\.parquet .*row 0 of row group 0: None, "):
        open_sources(imagenets.parquet(tmp_path / "unnamed", named=False))
    root = imagenets.parquet(tmp_path / "named")
    open_sources(root)
    first = root / "data" / "train-00000-of-00003.parquet"
    first.write_bytes(first.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"00000-of-00003\.parquet is not a parquet file of images"):
        open_sources(root)
    first.unlink()
    with pytest.raises(DataError, match="holds 2 of the 3 files train-"):
        open_sources(root)


def test_folders_reached_twice_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    imagenets.write({"cat/1.jpg": jpeg(0), "dog/1.jpg": jpeg(1)}, folder)
    split = layouts.split_at(folder, "data.train")
    for link, target in (("cat/x", "."), ("cat/y", ".."), ("dog/z", "../cat"), ("eel", "dog")):
        (folder / link).symlink_to(target)
        with pytest.raises(DataError, match="are the same folder, so its images would count"):
            split.scan()
        (folder / link).unlink()
    outside = tmp_path / "elsewhere"
    imagenets.write({"2.jpg": jpeg(2)}, outside)
    (folder / "dog" / "more").symlink_to(outside)
    (folder / "eel").symlink_to(outside.parent / "other")
    imagenets.write({"3.jpg": jpeg(3)}, tmp_path / "other")
    assert len(IndexedSource(split.open())) == 4  # links to other folders are followed
