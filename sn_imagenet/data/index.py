"""The index of the samples of a data set: made once, kept in a file, checked at each start."""

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
    """The samples that were found below ``origin``, a folder or an archive; in any order.

    ``classes``: sorted. ``labels``: int64 [N], places in ``classes``. ``names``: bytes [N], the
    file names, which for class folders are relative to the class's. ``sizes``: int64 [N], in
    bytes. ``offsets``: int64 [N], where the bytes begin in the archive; None for files of their
    own. ``flat``: whether the files lie directly in ``origin``. ``sources``: the folders and files
    of which the list was made, relative to ``origin``; none of them can change unnoticed.
    ``parquet``: whether these are parquet files, and the offsets places in them (parquet.py).
    """

    origin: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    names: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray | None = None
    flat: bool = False
    sources: tuple[str, ...] = (".",)
    parquet: bool = False

    def sorted(self) -> Listing:
        """By class and name (folder, then file), which makes a place in the list a sample's id,
        the same for folders and archives.

        Raises:
            DataError: two samples of a class have the same name.
        """
        folders = np.array([os.path.dirname(name) for name in self.names.tolist()])
        order = np.lexsort((self.names, folders, self.labels))
        labels, names = self.labels[order], self.names[order]
        same = (labels[1:] == labels[:-1]) & (names[1:] == names[:-1])
        if same.any():
            name = os.fsdecode(names[1:][same][0])
            raise DataError(
                f"{self.origin} holds {name} twice in class "
                f"{self.classes[labels[1:][same][0]]}: remove one of the two."
            )
        offsets = None if self.offsets is None else self.offsets[order]
        return replace(self, labels=labels, names=names, sizes=self.sizes[order], offsets=offsets)


@dataclass(frozen=True)
class Index:
    """A sorted :class:`Listing`, ``bad`` (bool [N]: marked as not decodable), and ``stamps``: of
    each of the listing's sources, its time and size when the list was made."""

    listing: Listing
    bad: np.ndarray
    stamps: dict[str, list[int]] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Over (class, file name, size) of the samples that are not marked."""
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

    def where(self, sample: int) -> str:
        """The file, as a person would look for it."""
        listing = self.listing
        name = os.fsdecode(listing.names[sample])
        if listing.offsets is not None:
            return f"{name} in {listing.origin}"
        return str(self.path(sample)) if name else str(listing.origin)

    def path(self, sample: int) -> Path:
        """Of a sample that is a file of its own."""
        listing = self.listing
        folder = listing.origin
        if not listing.flat:
            folder = folder / listing.classes[listing.labels[sample]]
        return folder / os.fsdecode(listing.names[sample])


def open_index(origin: Path, scan: Callable[[], Listing]) -> Index:
    """The index kept of ``origin``; where there is none, ``scan`` makes it.

    Of the processes of a machine that start at once, one makes it.

    Raises:
        DataError: the data changed since the index was made; or as ``scan`` says.
    """
    index = load(origin)
    if index is None:
        with _alone(origin):
            index = load(origin)
            if index is None:
                index = make(scan)
                save(index)
    return index


def make(scan: Callable[[], Listing]) -> Index:
    """A new index, nothing marked."""
    listing = scan().sorted()
    stamps = {source: _stamp(listing.origin, source) for source in listing.sources}
    return Index(listing, np.zeros(len(listing.labels), dtype=bool), stamps)


def places(origin: Path) -> list[Path]:
    """Where the index of ``origin`` may lie: beside it, or in the user's cache."""
    origin = Path(os.path.abspath(origin))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sn-imagenet"
    key = hashlib.sha256(os.fsencode(origin)).hexdigest()[:16]
    return [origin.with_name(f"{origin.name}.index.npz"), cache / f"{origin.name}-{key}.index.npz"]


def save(index: Index) -> Path:
    """Write the index beside the data or, where that is not allowed, in the user's cache; what a
    reader finds there is whole. Returns where it is."""
    listing = index.listing
    about = {
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
    beside, cached = places(listing.origin)
    path = beside if os.access(beside.parent, os.W_OK) else cached
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
        os.chmod(file.name, 0o644)  # others train on the data too
        os.replace(file.name, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(file.name)
        raise DataError(f"the index cannot be written to {path}: {error}") from error
    return path


def load(origin: Path) -> Index | None:
    """The index kept of ``origin``, if there is one.

    Raises:
        DataError: the data changed since it was made, or the file is not an index.
    """
    path = next((path for path in places(origin) if path.exists()), None)
    if path is None:
        return None
    anew = f"Make it anew: {PREPARE} {origin}"
    try:
        with np.load(path, allow_pickle=False) as file:
            about: dict[str, Any] = json.loads(str(file["about"]))
            listing = Listing(
                origin,
                tuple(about["classes"]),
                file["labels"],
                file["names"],
                file["sizes"],
                file.get("offsets"),
                about["flat"],
                tuple(about["stamps"]),
                about.get("parquet", False),
            )
            index = Index(listing, file["bad"], about["stamps"])
            if "sha256" in about:  # taking it anew takes 7 s for all of ImageNet
                vars(index)["sha256"] = about["sha256"]
    except Exception as error:  # numpy, zipfile and json raise errors of many types
        raise DataError(f"{path} is not a whole index of {origin} ({error}). {anew}") from error
    if about["version"] != VERSION:
        raise DataError(f"{path} is of another version of this project. {anew}")
    for source, stamp in index.stamps.items():
        try:
            same = _stamp(origin, source) == stamp
        except OSError:
            same = False
        if not same:
            what = os.path.normpath(origin / source)
            raise DataError(f"{what} changed since the index {path} was made of it. {anew}")
    return index


def _stamp(origin: Path, source: str) -> list[int]:
    """Time (ns) and, of a file, size: a folder's time changes with the names in it."""
    path = Path(os.path.normpath(origin / source))
    status = path.stat()
    return [status.st_mtime_ns, 0 if path.is_dir() else status.st_size]


@contextmanager
def _alone(origin: Path) -> Iterator[None]:
    name = hashlib.sha256(os.fsencode(os.path.abspath(origin))).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"sn-imagenet-{os.getuid()}-{name}.lock"
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
