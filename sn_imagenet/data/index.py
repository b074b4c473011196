"""The index of a data set's samples: built once, stored in a file, checked at each start."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sn_imagenet.data.errors import DataError

VERSION = 1
PREPARE = "python scripts/prepare_data.py"


@dataclass(frozen=True)
class Listing:
    """The samples found in ``origin``, a folder or an archive, in any order.

    ``classes``: sorted. ``labels``: int64 [N], indices into ``classes``. ``names``: bytes [N], file
    names, relative to the class folder if there are class folders. ``sizes``: int64 [N], in bytes.
    ``offsets``: int64 [N], where the bytes begin in the archive; None if each sample is a file.
    ``flat``: whether the files are directly in ``origin``. ``scanned``: the folders and files
    from which the list was built, relative to ``origin``. A change of any of them is detected.
    ``parquet``: whether these are parquet files, whose offsets parquet.py packs.
    """

    origin: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    names: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray | None = None
    flat: bool = False
    scanned: tuple[str, ...] = (".",)
    parquet: bool = False

    def sorted(self) -> Listing:
        """Sorted by class and name (folder, then file), so that a position in the list is the same
        sample for folders and archives.

        Raises:
            DataError: two samples of a class have the same name.
        """
        folders = np.array([os.path.dirname(name) for name in self.names.tolist()])
        order = np.lexsort((self.names, folders, self.labels))
        labels, names = self.labels[order], self.names[order]
        duplicate = (labels[1:] == labels[:-1]) & (names[1:] == names[:-1])
        if duplicate.any():
            name = os.fsdecode(names[1:][duplicate][0])
            raise DataError(
                f"{self.origin} holds {name} twice in class "
                f"{self.classes[labels[1:][duplicate][0]]}: remove one of the two."
            )
        offsets = None if self.offsets is None else self.offsets[order]
        return replace(self, labels=labels, names=names, sizes=self.sizes[order], offsets=offsets)


@dataclass(frozen=True)
class Index:
    """A sorted :class:`Listing`; ``bad`` (bool [N]): marked as not decodable; ``stamps``: time and
    size of each scanned path when the list was made. A position in it is called an entry."""

    listing: Listing
    bad: np.ndarray
    stamps: dict[str, list[int]] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Over (class, file name, size) of the samples that are not marked as bad."""
        listing = self.listing
        chosen = np.flatnonzero(~self.bad)
        digest = hashlib.sha256()
        classes = [os.fsencode(name) for name in listing.classes]
        for start in range(0, len(chosen), 100_000):
            part = chosen[start : start + 100_000]
            rows = zip(
                listing.labels[part].tolist(),
                listing.names[part].tolist(),
                listing.sizes[part].tolist(),
                strict=True,
            )
            digest.update(b"".join(b"%s\0%s\0%d\n" % (classes[c], n, s) for c, n, s in rows))
        return digest.hexdigest()

    def location(self, entry: int) -> str:
        """The file of an entry, for messages."""
        listing = self.listing
        name = os.fsdecode(listing.names[entry])
        if listing.offsets is not None:
            return f"{name} in {listing.origin}"
        return str(self.path(entry)) if name else str(listing.origin)

    def path(self, entry: int) -> Path:
        """The path of an entry that is a separate file."""
        listing = self.listing
        folder = listing.origin
        if not listing.flat:
            folder = folder / listing.classes[listing.labels[entry]]
        return folder / os.fsdecode(listing.names[entry])


def open_index(origin: Path, scan: Callable[[], Listing]) -> Index:
    """Load the stored index of ``origin``, or build it with ``scan`` if there is none. If several
    processes of a machine start at once, only one builds it.

    Raises:
        DataError: the data changed since the index was built, or ``scan`` failed.
    """
    index = load_index(origin)
    if index is None:
        with _exclusive_lock(origin):
            index = load_index(origin)
            if index is None:
                index = make_index(scan)
                save_index(index)
    return index


def make_index(scan: Callable[[], Listing]) -> Index:
    """A new index without marks."""
    listing = scan().sorted()
    stamps = {name: _stamp(listing.origin, name) for name in listing.scanned}
    return Index(listing, np.zeros(len(listing.labels), dtype=bool), stamps)


def index_paths(origin: Path) -> list[Path]:
    """Possible paths of the index of ``origin``: beside it, or in the user's cache."""
    origin = Path(os.path.abspath(origin))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sn-imagenet"
    key = hashlib.sha256(os.fsencode(origin)).hexdigest()[:16]
    return [origin.with_name(f"{origin.name}.index.npz"), cache / f"{origin.name}-{key}.index.npz"]


def save_index(index: Index) -> Path:
    """Write the index atomically beside the data or, if that is not permitted, to the user's cache.
    Returns its path."""
    listing = index.listing
    metadata = {
        "version": VERSION,
        "classes": listing.classes,
        "flat": listing.flat,
        "parquet": listing.parquet,
        "stamps": index.stamps,
        "sha256": index.sha256,
    }
    arrays = {"labels": listing.labels, "names": listing.names, "sizes": listing.sizes}
    arrays["bad"] = index.bad
    if listing.offsets is not None:
        arrays["offsets"] = listing.offsets
    beside, cached = index_paths(listing.origin)
    path = beside if os.access(beside.parent, os.W_OK) else cached
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.savez(file, about=np.array(json.dumps(metadata)), **arrays)  # type: ignore[arg-type]
        os.chmod(file.name, 0o644)  # others train on the data too
        os.replace(file.name, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(file.name)
        raise DataError(f"the index cannot be written to {path}: {error}") from error
    return path


def load_index(origin: Path) -> Index | None:
    """The stored index of ``origin``, or None.

    Raises:
        DataError: the data changed since it was built, or the file is not an index.
    """
    path = next((path for path in index_paths(origin) if path.exists()), None)
    if path is None:
        return None
    rebuild = f"Rebuild it: {PREPARE} {origin}"
    try:
        with np.load(path, allow_pickle=False) as file:
            metadata: dict[str, Any] = json.loads(str(file["about"]))
            listing = Listing(
                origin,
                tuple(metadata["classes"]),
                file["labels"],
                file["names"],
                file["sizes"],
                file.get("offsets"),
                metadata["flat"],
                tuple(metadata["stamps"]),
                metadata.get("parquet", False),
            )
            index = Index(listing, file["bad"], metadata["stamps"])
            if "sha256" in metadata:  # computing it again takes 7 s for ImageNet
                vars(index)["sha256"] = metadata["sha256"]
    except Exception as error:  # numpy, zipfile and json raise errors of many types
        raise DataError(
            f"{path} is not a complete index of {origin} ({error}). {rebuild}"
        ) from error
    if metadata["version"] != VERSION:
        raise DataError(f"{path} was written by another version of this project. {rebuild}")
    for name, stamp in index.stamps.items():
        try:
            unchanged = _stamp(origin, name) == stamp
        except OSError:
            unchanged = False
        if not unchanged:
            changed = os.path.normpath(origin / name)
            raise DataError(f"{changed} changed since the index {path} was built. {rebuild}")
    return index


def _stamp(origin: Path, name: str) -> list[int]:
    """[mtime (ns), size], size 0 for a folder. A folder's mtime changes with the names in it."""
    path = Path(os.path.normpath(origin / name))
    status = path.stat()
    return [status.st_mtime_ns, 0 if path.is_dir() else status.st_size]


@contextmanager
def _exclusive_lock(origin: Path) -> Iterator[None]:
    name = hashlib.sha256(os.fsencode(os.path.abspath(origin))).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"sn-imagenet-{os.getuid()}-{name}.lock"
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
