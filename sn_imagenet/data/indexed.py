"""Images that are read by their index, from files of their own or out of an archive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sn_imagenet.data.decode import UndecodableError, decode, image_size
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import PREPARE, Index
from sn_imagenet.data.parquet import ParquetReader
from sn_imagenet.data.sources import Sample


def _read(path: Path, expected: int) -> bytes:
    """A file of about so many bytes, in half the time of a file object's read()."""
    file = os.open(path, os.O_RDONLY)
    try:
        data = os.read(file, expected)
        while more := os.read(file, 65536):
            data += more
        return data
    finally:
        os.close(file)


class IndexedSource:
    """The samples of ``index`` that are not marked as bad, in its order.

    Raises (when a sample is opened, or its pixels are asked for):
        DataError: the file cannot be read, is not that of the index, or cannot be decoded.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.classes = index.listing.classes
        self.chosen = np.flatnonzero(~index.bad)
        self.labels = index.listing.labels[self.chosen]
        self._archive: int | None = None
        self._parquet: ParquetReader | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    def open(self, sample: int) -> Sample:
        data = self.read(sample)
        with self._naming(sample):
            size = image_size(data)

        def pixels(rows: int | None = None) -> np.ndarray:
            with self._naming(sample):
                return decode(data, rows)

        return Sample(size, int(self.labels[sample]), pixels)

    @contextmanager
    def _naming(self, sample: int) -> Iterator[None]:
        try:
            yield
        except UndecodableError as error:
            raise DataError(
                f"{self.index.where(self.chosen[sample])} cannot be read as an image ({error}): "
                f"sample {sample}, class {self.classes[self.labels[sample]]}. Nothing is "
                "substituted for it; put an intact copy in its place, or mark all such files, "
                f"which leaves them out: {PREPARE} {self.index.listing.origin} --mark"
            ) from error

    def read(self, sample: int) -> bytes:
        """The bytes of its file, as they are stored.

        Raises:
            DataError: they cannot be read, or are not as many as when the index was made.
        """
        number = self.chosen[sample]
        listing = self.index.listing
        size = int(listing.sizes[number])
        try:
            if listing.offsets is None:
                data = _read(self.index.path(number), size)
            elif listing.parquet:
                data = self._open_parquet().read(int(listing.offsets[number]))
            else:
                # Without a position of its own, so that forked workers may share what is open.
                data = os.pread(self._open_archive(), size, int(listing.offsets[number]))
        except OSError as error:
            raise DataError(f"{self.index.where(number)} cannot be read: {error}") from error
        if len(data) != size:
            raise DataError(
                f"{self.index.where(number)} has {len(data)} bytes, and had {size} when its index "
                f"was made. Make it anew: {PREPARE} {listing.origin}"
            )
        return data

    def fingerprint(self) -> dict[str, Any]:
        """Over (class, file name, size) of each sample; ``left_out`` names those marked as bad."""
        bad = np.flatnonzero(self.index.bad)
        found = {"samples": len(self), "sha256": self.index.sha256}
        left_out = [os.fsdecode(name) for name in self.index.listing.names[bad].tolist()]
        return {**found, "left_out": left_out} if left_out else found

    def _open_archive(self) -> int:
        if self._archive is None:
            self._archive = os.open(self.index.listing.origin, os.O_RDONLY)
        return self._archive

    def _open_parquet(self) -> ParquetReader:
        if self._parquet is None:
            listing = self.index.listing
            files = [Path(os.path.normpath(listing.origin / name)) for name in listing.sources]
            self._parquet = ParquetReader(files)
        return self._parquet

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker opens its own.
        return {**self.__dict__, "_archive": None, "_parquet": None}

    def __del__(self) -> None:
        if self._archive is not None:
            os.close(self._archive)
