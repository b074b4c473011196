"""ImageNet in Hugging Face's format: parquet files whose rows hold an image file's bytes and name
(``image``) and its class (``label``). Read in place with pyarrow (the extra ``parquet``)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import Listing

_SHARD = re.compile(r"(\w+)-(\d{5})-of-(\d{5})\.parquet")
# ILSVRC2012_val_00000293_n01440764.JPEG: the file's name and its class.
_NAME_WITH_WNID = re.compile(r"(.+)_(n\d{8})(\.\w+)")
_COLUMNS = ["image.bytes", "image.path", "label"]
_OPEN_FILES = 32


def find_shards(root: Path, split: str) -> tuple[Path, list[Path]] | None:
    """The parquet files of ``split`` (train, validation) in ``root`` or ``root/data``, and a path
    that stands for them: ``train``, which does not exist, beside ``train-00000-of-...``.

    Raises:
        DataError: some of the files are missing.
    """
    for folder in (root, root / "data"):
        files = sorted(folder.glob(f"{split}-*-of-*.parquet"))
        matches = [match for file in files if (match := _SHARD.fullmatch(file.name))]
        if matches:
            total = int(matches[0][3])
            if [int(match[2]) for match in matches] != list(range(total)):
                raise DataError(
                    f"{folder} holds {len(matches)} of the {total} files {split}-*.parquet. "
                    "Download the others."
                )
            return folder / split, files
    return None


def scan_shards(origin: Path, files: list[Path]) -> Listing:
    """List the rows of all ``files``. Every file is read once, because a sample's size is known
    only from its bytes.

    If the name in every row ends in a WNID, as ImageNet's do, that gives a sample's file name and
    class, as in class folders. Otherwise shard and row give the name, and the label number the
    class.

    Raises:
        DataError: pyarrow is not installed, or a file does not have this format.
    """
    rows: list[tuple[str | None, int, int, int]] = []  # name, label, size, location
    for number, file in enumerate(_progress(files, f"listing {origin}")):
        try:
            rows += _read_rows(file, number)
        except (KeyError, ValueError, OSError) as error:  # pyarrow's errors derive from these
            raise DataError(
                f"{file} is not a parquet file of images and labels ({error}). Download it again."
            ) from error
    if not rows:
        raise DataError(f"{origin}-*.parquet contain no images.")
    matches = [_NAME_WITH_WNID.fullmatch(name or "") for name, *_ in rows]
    if all(matches):
        names = [f"{match[1]}{match[3]}" for match in matches if match]
        labels = [match[2] for match in matches if match]
    else:
        names = [_name_by_location(files, location) for *_, location in rows]
        labels = [f"{label:04d}" for _, label, _, _ in rows]
    classes = sorted(set(labels))
    label_of = {name: label for label, name in enumerate(classes)}
    return Listing(
        origin,
        tuple(classes),
        labels=np.array([label_of[name] for name in labels], dtype=np.int64),
        names=np.array([name.encode() for name in names]),
        sizes=np.array([size for _, _, size, _ in rows], dtype=np.int64),
        offsets=np.array([location for *_, location in rows], dtype=np.int64),
        scanned=tuple(f"../{file.name}" for file in files),
        parquet=True,
    )


class ParquetReader:
    """Reads the bytes of images by their location in ``files``. Holds one row group (about 100
    images) and up to :data:`_OPEN_FILES` memory-mapped files, which forked workers can share."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._open: dict[int, Any] = {}
        self._group: tuple[tuple[int, int], Any] | None = None

    def read(self, location: int) -> bytes:
        """
        Raises:
            OSError: the file cannot be read.
        """
        number, group, row = _unpack_location(location)
        if self._group is None or self._group[0] != (number, group):
            if len(self._open) >= _OPEN_FILES:
                self._open.clear()
            if number not in self._open:
                self._open[number] = _parquet_file(self._files[number])
            table = self._open[number].read_row_group(
                group, columns=["image.bytes"], use_threads=False
            )
            self._group = (number, group), table.column("image").combine_chunks().field("bytes")
        data: bytes = self._group[1][row].as_py()
        return data


def _read_rows(file: Path, number: int) -> list[tuple[str | None, int, int, int]]:
    parquet = _parquet_file(file)
    rows = []
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group, columns=_COLUMNS, use_threads=False)
        images = table.column("image").combine_chunks()
        sizes = [len(data.as_buffer() or b"") for data in images.field("bytes")]
        if not all(sizes):
            raise ValueError(f"row {sizes.index(0)} of row group {group} has no image")
        names = images.field("path").to_pylist()
        labels = table.column("label").to_pylist()
        locations = map(partial(_pack_location, number, group), range(len(sizes)))
        rows += list(zip(names, labels, sizes, locations, strict=True))
    return rows


def _pack_location(number: int, group: int, row: int) -> int:
    return number << 40 | group << 20 | row


def _unpack_location(location: int) -> tuple[int, int, int]:
    return location >> 40, location >> 20 & 0xFFFFF, location & 0xFFFFF


def _name_by_location(files: list[Path], location: int) -> str:
    number, group, row = _unpack_location(location)
    return f"{files[number].name}:{group:05d}:{row:05d}"


def _parquet_file(file: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"Reading {file} needs pyarrow: pip install 'sn-imagenet[parquet]'"
        ) from error
    return ParquetFile(file, memory_map=True)


def _progress(files: list[Path], what: str) -> Iterable[Path]:
    bar: Iterable[Path] = tqdm(files, what, unit=" files", delay=2, disable=None)
    return bar
