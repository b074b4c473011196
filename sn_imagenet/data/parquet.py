"""ImageNet as Hugging Face stores it: parquet files whose rows hold an image file's bytes and name
(``image``) and its class (``label``). Read in place; needs pyarrow, the extra ``parquet``."""

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
_NAMED = re.compile(r"(.+)_(n\d{8})(\.\w+)")
_COLUMNS = ["image.bytes", "image.path", "label"]
_OPEN_FILES = 32


def shards(root: Path, split: str) -> tuple[Path, list[Path]] | None:
    """The parquet files of ``split`` (train, validation) in ``root`` or ``root/data``, and the
    place that stands for them: ``train``, which does not exist, beside ``train-00000-of-...``.

    Raises:
        DataError: not all of them are there.
    """
    for folder in (root, root / "data"):
        files = sorted(folder.glob(f"{split}-*-of-*.parquet"))
        found = [match for file in files if (match := _SHARD.fullmatch(file.name))]
        if found:
            total = int(found[0][3])
            if [int(match[2]) for match in found] != list(range(total)):
                raise DataError(
                    f"{folder} holds {len(found)} of the {total} files {split}-*.parquet. Fetch "
                    "the others."
                )
            return folder / split, files
    return None


def list_rows(origin: Path, files: list[Path]) -> Listing:
    """The rows of all ``files``, each of which is read once, since only its bytes tell a sample's
    size.

    Where every row has a name that ends in its WNID, as ImageNet's do, a sample is known by that
    file and class: as in class folders. Where not, by its shard and row, and the class by its
    number.

    Raises:
        DataError: pyarrow is not installed, or a file is not such a one.
    """
    rows: list[tuple[str | None, int, int, int]] = []  # name, label, size, place
    for number, file in enumerate(_progress(files, f"listing {origin}")):
        try:
            rows += _rows_of(file, number)
        except (KeyError, ValueError, OSError) as error:  # pyarrow's own are of these
            raise DataError(
                f"{file} is no parquet file of images and labels ({error}). Fetch it anew."
            ) from error
    if not rows:
        raise DataError(f"{origin}-*.parquet hold no image.")
    matches = [_NAMED.fullmatch(name or "") for name, *_ in rows]
    if all(matches):
        names = [f"{match[1]}{match[3]}" for match in matches if match]
        labels = [match[2] for match in matches if match]
    else:
        names = [_own_name(files, place) for *_, place in rows]
        labels = [f"{label:04d}" for _, label, _, _ in rows]
    classes = sorted(set(labels))
    label_of = {name: label for label, name in enumerate(classes)}
    return Listing(
        origin,
        tuple(classes),
        labels=np.array([label_of[name] for name in labels], dtype=np.int64),
        names=np.array([name.encode() for name in names]),
        sizes=np.array([size for _, _, size, _ in rows], dtype=np.int64),
        offsets=np.array([place for *_, place in rows], dtype=np.int64),
        sources=tuple(f"../{file.name}" for file in files),
        parquet=True,
    )


class ParquetReader:
    """The bytes of images by their place in ``files``. Holds one row group, some 100 images, and
    some :data:`_OPEN_FILES` files, mapped, so that forked workers may share them."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._open: dict[int, Any] = {}
        self._held: tuple[tuple[int, int], Any] | None = None

    def read(self, place: int) -> bytes:
        """
        Raises:
            OSError: it cannot be read.
        """
        number, group, row = _parts(place)
        if self._held is None or self._held[0] != (number, group):
            if len(self._open) >= _OPEN_FILES:
                self._open.clear()
            if number not in self._open:
                self._open[number] = _parquet_file(self._files[number])
            table = self._open[number].read_row_group(
                group, columns=["image.bytes"], use_threads=False
            )
            self._held = (number, group), table.column("image").combine_chunks().field("bytes")
        data: bytes = self._held[1][row].as_py()
        return data


def _rows_of(file: Path, number: int) -> list[tuple[str | None, int, int, int]]:
    parquet = _parquet_file(file)
    rows = []
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group, columns=_COLUMNS, use_threads=False)
        images = table.column("image").combine_chunks()
        sizes = [len(data.as_buffer() or b"") for data in images.field("bytes")]
        if not all(sizes):
            raise ValueError(f"row {sizes.index(0)} of row group {group} holds no image")
        names = images.field("path").to_pylist()
        labels = table.column("label").to_pylist()
        places = map(partial(_place, number, group), range(len(sizes)))
        rows += list(zip(names, labels, sizes, places, strict=True))
    return rows


def _place(number: int, group: int, row: int) -> int:
    return number << 40 | group << 20 | row


def _parts(place: int) -> tuple[int, int, int]:
    return place >> 40, place >> 20 & 0xFFFFF, place & 0xFFFFF


def _own_name(files: list[Path], place: int) -> str:
    number, group, row = _parts(place)
    return f"{files[number].name}:{group:05d}:{row:05d}"


def _parquet_file(file: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"{file} is read by pyarrow, which is not installed: pip install 'sn-imagenet[parquet]'"
        ) from error
    return ParquetFile(file, memory_map=True)


def _progress(files: list[Path], what: str) -> Iterable[Path]:
    bar: Iterable[Path] = tqdm(files, what, unit=" files", delay=2, disable=None)
    return bar
