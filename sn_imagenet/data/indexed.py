"""Images that an index lists, read from separate files or from an archive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sn_imagenet.data.decode import image_size
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import PREPARE, Index
from sn_imagenet.data.parquet import ParquetReader
from sn_imagenet.data.sources import Sample


class IndexedSource:
    """The samples of ``index`` that are not marked as bad, in its order.

    Raises (when a sample is opened):
        DataError: the file cannot be read, or differs from the index.
        UndecodableError: it is not an image.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.classes = index.listing.classes
        self.entries = np.flatnonzero(~index.bad)
        self.labels = index.listing.labels[self.entries]
        self._archive: int | None = None
        self._parquet: ParquetReader | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def open(self, sample: int) -> Sample:
        data = self.read(sample)
        return Sample(data, image_size(data), int(self.labels[sample]))

    def location(self, sample: int) -> str:
        return self.index.location(self.entries[sample])

    def read(self, sample: int) -> bytes:
        """The stored bytes of a sample's file.

        Raises:
            DataError: they cannot be read, or their number changed since the index was built.
        """
        entry = self.entries[sample]
        listing = self.index.listing
        size = int(listing.sizes[entry])
        try:
            if listing.offsets is None:
                data = self.index.path(entry).read_bytes()
            elif listing.parquet:
                data = self._open_parquet().read(int(listing.offsets[entry]))
            else:
                # pread uses no file position, so forked workers can share the open archive.
                data = os.pread(self._open_archive(), size, int(listing.offsets[entry]))
        except OSError as error:
            raise DataError(f"{self.index.location(entry)} cannot be read: {error}") from error
        if len(data) != size:
            raise DataError(
                f"{self.index.location(entry)} has {len(data)} bytes, but had {size} when its "
                f"index was built. Rebuild it: {PREPARE} {listing.origin}"
            )
        return data

    def fingerprint(self) -> dict[str, Any]:
        """Over (class, file name, size) of each sample. ``left_out`` lists files marked as bad."""
        bad = np.flatnonzero(self.index.bad)
        fingerprint = {"samples": len(self), "sha256": self.index.sha256}
        left_out = [os.fsdecode(name) for name in self.index.listing.names[bad].tolist()]
        return {**fingerprint, "left_out": left_out} if left_out else fingerprint

    def _open_archive(self) -> int:
        if self._archive is None:
            self._archive = os.open(self.index.listing.origin, os.O_RDONLY)
        return self._archive

    def _open_parquet(self) -> ParquetReader:
        if self._parquet is None:
            listing = self.index.listing
            files = [Path(os.path.normpath(listing.origin / name)) for name in listing.scanned]
            self._parquet = ParquetReader(files)
        return self._parquet

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker opens its own files.
        return {**self.__dict__, "_archive": None, "_parquet": None}

    def __del__(self) -> None:
        if self._archive is not None:
            os.close(self._archive)
