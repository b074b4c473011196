"""Hugging Face's parquet files. test_data_index checks that they give the same samples."""

from __future__ import annotations

from pathlib import Path

import imagenets
import pytest

from sn_imagenet.data import layouts
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.prepare import prepare_data


def open_sources(root: Path) -> tuple[IndexedSource, IndexedSource]:
    splits = layouts.find_imagenet(root)
    return layouts.open_splits(splits["training"], splits["validation"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return imagenets.parquet(tmp_path)


def test_names_without_a_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"00000-of-00003\.parquet .*row 0 of row group 0: None, "):
        open_sources(imagenets.parquet(tmp_path, named=False))


def test_missing_or_changed_files_are_refused(root: Path) -> None:
    open_sources(root)
    first = root / "data" / "train-00000-of-00003.parquet"
    whole = first.read_bytes()
    first.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"00000-of-00003\.parquet is not a parquet file of images"):
        open_sources(root)
    first.unlink()
    with pytest.raises(DataError, match="holds 2 of the 3 files train-"):
        open_sources(root)


def test_prepare_data_finds_parquet_files(root: Path) -> None:
    lines: list[str] = []
    assert prepare_data(root, verify=True, mark=False, workers=1, log=lines.append)
    assert f"training set: {root}/data/train" in lines
    assert lines.count("  every file was decoded: 0 bad") == 2
    # The path that an error about a single split shows.
    assert prepare_data(root / "data" / "train", verify=False, mark=False, workers=1, log=print)
