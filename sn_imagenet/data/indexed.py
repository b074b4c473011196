"""Images that an index lists, read from separate files or from an archive."""

from __future__ import annotations

import hashlib
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sn_imagenet.data.decode import image_size
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import Index, prepare_command
from sn_imagenet.data.parquet import read_bytes
from sn_imagenet.data.scanning import UNREADABLE
from sn_imagenet.data.sources import Sample
from sn_imagenet.errors import as_text
from sn_imagenet.runs.reading import open_to_read


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
        for sample in np.flatnonzero(index.sizes[self.entries] == UNREADABLE)[:1]:
            self.read(int(sample))  # raises: now, and not in the middle of an epoch

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
                with open_to_read(index.path(entry)) as file:
                    data = file.read()
            elif index.parquet:
                data = read_bytes(index.origin, list(index.stamps), int(index.offsets[entry]))
            else:
                # pread uses no file position, so forked workers can share the open archive.
                data = os.pread(_open_archive(index.origin), size, int(index.offsets[entry]))
        except OSError as error:
            raise DataError(
                f"{index.location(entry)} cannot be read: {error}. Replace it, or leave it out: "
                f"{prepare_command(index.origin)} --mark"
            ) from error
        changed = ""
        if len(data) != size:
            changed = f"has {len(data)} bytes, but had {max(size, 0)}"
        elif index.checksums is not None and zlib.crc32(data) != index.checksums[entry]:
            changed = "has other contents than"
        if changed:
            raise DataError(
                f"{index.location(entry)} {changed} when its index was built. Rebuild it: "
                f"{prepare_command(index.origin)}"
            )
        return data

    def fingerprint(self) -> dict[str, Any]:
        """Over (class, file name, size) of each sample, and ``contents`` over their bytes if
        scripts/prepare_data.py has read them. ``left_out`` lists files marked as bad."""
        index = self.index
        fingerprint: dict[str, Any] = {"samples": len(self), "sha256": index.sha256}
        if index.checksums is not None:
            contents = index.checksums[self.entries].astype("<u4").tobytes()
            fingerprint["contents"] = hashlib.sha256(contents).hexdigest()
        left_out = [as_text(os.fsdecode(name)) for name in index.names[index.bad].tolist()]
        return {**fingerprint, "left_out": left_out} if left_out else fingerprint


@cache
def _open_archive(path: Path) -> int:
    """Kept open until the process ends: opening it for each sample is slow on a network."""
    return os.open(path, os.O_RDONLY)
