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
        self.classes = index.classes
        self.entries = np.flatnonzero(~index.bad)
        self.labels = index.labels[self.entries]
        self._archive: int | ParquetReader | None = None

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
        entry, index = self.entries[sample], self.index
        size = int(index.sizes[entry])
        try:
            if index.offsets is None:
                data = index.path(entry).read_bytes()
            else:
                data = self._read_archive(int(index.offsets[entry]), size)
        except OSError as error:
            raise DataError(f"{index.location(entry)} cannot be read: {error}") from error
        if len(data) != size:
            raise DataError(
                f"{index.location(entry)} has {len(data)} bytes, but had {size} when its "
                f"index was built. Rebuild it: {PREPARE} {index.origin}"
            )
        return data

    def _read_archive(self, offset: int, size: int) -> bytes:
        if self._archive is None:
            origin = self.index.origin
            if self.index.parquet:
                files = [Path(os.path.normpath(origin / name)) for name in self.index.stamps]
                self._archive = ParquetReader(files)
            else:
                self._archive = os.open(origin, os.O_RDONLY)
        if isinstance(self._archive, ParquetReader):
            return self._archive.read(offset)
        # pread uses no file position, so forked workers can share the open archive.
        return os.pread(self._archive, size, offset)

    def fingerprint(self) -> dict[str, Any]:
        """Over (class, file name, size) of each sample. ``left_out`` lists files marked as bad."""
        fingerprint = {"samples": len(self), "sha256": self.index.sha256}
        left_out = [os.fsdecode(name) for name in self.index.names[self.index.bad].tolist()]
        return {**fingerprint, "left_out": left_out} if left_out else fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}  # a spawned worker opens its own files

    def __del__(self) -> None:
        if isinstance(self._archive, int):
            os.close(self._archive)
