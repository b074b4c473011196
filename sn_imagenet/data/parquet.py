"""ImageNet in Hugging Face's format: parquet files whose rows hold an image file's bytes and name
(``image``). Read in place with pyarrow (the extra ``parquet``)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import Index, build_index
from sn_imagenet.data.scanning import progress

_NUMBER = "[0-9]" * 5
# ILSVRC2012_val_00000293_n01440764.JPEG: the file's name and its class.
_NAME_WITH_WNID = re.compile(r"(.+)_(n\d{8})(\.\w+)")


def find_shards(path: Path) -> list[Path]:
    """The parquet files ``path-00000-of-...``, for which ``path`` stands; it does not exist.

    Raises:
        DataError: some of them are missing.
    """
    files = sorted(path.parent.glob(f"{path.name}-{_NUMBER}-of-{_NUMBER}.parquet"))
    total = int(files[0].stem[-5:]) if files else 0
    if len(files) != total:
        raise DataError(
            f"{path.parent} holds {len(files)} of the {total} files {path.name}-*.parquet. "
            "Download the others."
        )
    return files


def scan_shards(origin: Path, files: list[Path]) -> Index:
    """List the rows of all ``files``. Every file is read once, because a sample's size is known
    only from its bytes. Its name, which ends in a WNID, gives file name and class.

    Raises:
        DataError: pyarrow is not installed, or a file does not have this format.
    """
    rows: list[tuple[str, str, int, int]] = []  # class, name, size, location
    for number, file in enumerate(progress(files, f"listing {origin}", unit=" files")):
        try:
            parquet = _parquet_file(file)
            for group in range(parquet.num_row_groups):
                images = _read_group(parquet, group, "image.bytes", "image.path")
                contents, names = images.field("bytes"), images.field("path").to_pylist()
                for row, (data, name) in enumerate(zip(contents, names, strict=True)):
                    match = _NAME_WITH_WNID.fullmatch(name or "")
                    size = len(data.as_buffer() or b"")
                    if match is None or not size:
                        raise ValueError(f"row {row} of row group {group}: {name}, {size} bytes")
                    location = number << 40 | group << 20 | row
                    rows.append((match[2], f"{match[1]}{match[3]}", size, location))
        except DataError:
            raise
        except (KeyError, ValueError, OSError) as error:  # pyarrow's errors derive from these
            raise DataError(
                f"{file} is not a parquet file of images whose names end in their class, such as "
                f"_n01440764.JPEG ({error}). Download it again."
            ) from error
    return build_index(origin, rows, [f"../{file.name}" for file in files], parquet=True)


def read_bytes(origin: Path, files: Sequence[str], location: int) -> bytes:
    """The bytes of an image by its location in ``files``, which are relative to ``origin``.

    Raises:
        OSError: the file cannot be read.
    """
    file = Path(os.path.normpath(origin / files[location >> 40]))
    group = _row_group(file, location >> 20 & 0xFFFFF)
    data: bytes = group[location & 0xFFFFF].as_py()
    return data


@lru_cache(1)  # about 100 images
def _row_group(file: Path, group: int) -> Any:
    return _read_group(_kept_open(file), group, "image.bytes").field("bytes")


@lru_cache(32)
def _kept_open(file: Path) -> Any:
    return _parquet_file(file)  # memory-mapped, so forked workers can share it


def _read_group(parquet: Any, group: int, *columns: str) -> Any:
    table = parquet.read_row_group(group, columns=list(columns), use_threads=False)
    return table.column("image").combine_chunks()


def _parquet_file(file: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"Reading {file} needs pyarrow: pip install -e '.[parquet]'") from error
    return ParquetFile(file, memory_map=True)
