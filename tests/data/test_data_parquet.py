"""Hugging Face's parquet files. That they give the same samples, test_data_index shows."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import imagenets
import pytest

from sn_imagenet.data import layouts
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.prepare import prepare_data


def opened(root: Path) -> tuple[IndexedSource, IndexedSource]:
    train, val = layouts.imagenet_train(root), layouts.imagenet_val(root)
    assert train is not None and val is not None
    return IndexedSource(train.open()), IndexedSource(val.open())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return imagenets.parquet(tmp_path)


def test_workers_read_it(root: Path) -> None:
    train, _ = opened(root)
    expected = [train.read(i) for i in range(len(train))]  # files are open when the workers start
    assert pickle.loads(pickle.dumps(train)).read(3) == expected[3]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(train.read, list(range(len(train))) * 3) == expected * 3


def test_without_names_a_sample_is_known_by_its_place(tmp_path: Path) -> None:
    named, own = (
        opened(imagenets.parquet(tmp_path / folder, named))[0]
        for folder, named in (("named", True), ("own", False))
    )
    assert own.classes == ("0000", "0001", "0002", "0003") and len(own) == len(named)
    assert own.fingerprint()["sha256"] != named.fingerprint()["sha256"]
    for label in range(4):
        images = [{s.read(i) for i in range(12) if s.labels[i] == label} for s in (named, own)]
        assert images[0] == images[1]
    assert own.index.where(0).startswith("train-0000")


def test_what_is_not_all_there_or_changed_is_refused(root: Path) -> None:
    opened(root)
    first = root / "data" / "train-00000-of-00003.parquet"
    whole = first.read_bytes()
    first.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"train-00000-of-00003\.parquet changed since the index"):
        opened(root)
    (root / "data" / "train.index.npz").unlink()
    with pytest.raises(DataError, match=r"00000-of-00003\.parquet is no parquet file of images"):
        opened(root)
    first.unlink()
    with pytest.raises(DataError, match="holds 2 of the 3 files train-"):
        opened(root)


def test_prepare_data_knows_it(root: Path) -> None:
    told: list[str] = []
    assert prepare_data(root, verify=True, mark=False, workers=1, say=told.append)
    assert f"training set: {root}/data/train (indexed)" in told
    assert told.count("  every file was decoded: 0 bad") == 2
    # The place that an error about one part names.
    assert prepare_data(root / "data" / "train", verify=False, mark=False, workers=1, say=print)
