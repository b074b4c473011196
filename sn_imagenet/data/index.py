"""The index of a data set's samples: built once, stored in a file, checked at each start."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import check_known_labels

VERSION = 1
PREPARE = "python scripts/prepare_data.py"


@dataclass(frozen=True)
class Index:
    """The samples at ``origin``, a folder or an archive, sorted by class and name, so that a
    position in it (an entry) is the same sample for folders and archives.

    ``labels``: int64 [N], indices into ``classes``. ``names``: bytes [N], file names, relative to
    the class folder if there are class folders. ``sizes``: int64 [N], in bytes. ``bad``: bool [N],
    marked as not decodable. ``stamps``: time and size of each folder and file from which the list
    was made, by its path relative to ``origin``. ``offsets``: int64 [N], where the bytes begin in
    the archive; None if each sample is a file. ``flat``: whether the files are directly in
    ``origin``. ``parquet``: whether these are parquet files, whose offsets parquet.py packs.
    """

    origin: Path
    classes: tuple[str, ...]
    labels: np.ndarray
    names: np.ndarray
    sizes: np.ndarray
    bad: np.ndarray
    stamps: dict[str, list[int]]
    offsets: np.ndarray | None = None
    flat: bool = False
    parquet: bool = False

    @cached_property
    def sha256(self) -> str:
        """Over (class, file name, size) of the samples that are not marked as bad."""
        chosen = np.flatnonzero(~self.bad)
        digest = hashlib.sha256()
        classes = [os.fsencode(name) for name in self.classes]
        for part in np.array_split(chosen, len(chosen) // 100_000 + 1):
            columns = (column[part].tolist() for column in (self.labels, self.names, self.sizes))
            rows = zip(*columns, strict=True)
            digest.update(b"".join(b"%s\0%s\0%d\n" % (classes[c], n, s) for c, n, s in rows))
        return digest.hexdigest()

    def location(self, entry: int) -> str:
        """The file of an entry, for messages."""
        if self.offsets is not None:
            return f"{os.fsdecode(self.names[entry])} in {self.origin}"
        return str(self.path(entry))

    def path(self, entry: int) -> Path:
        """The path of an entry that is a separate file."""
        folder = self.origin if self.flat else self.origin / self.classes[self.labels[entry]]
        return folder / os.fsdecode(self.names[entry])


def build_index(
    origin: Path,
    rows: list[Any],
    scanned: Iterable[str],
    *,
    flat: bool = False,
    parquet: bool = False,
) -> Index:
    """A new index without marks, from rows (class, name, size; offset if in an archive) in any
    order. ``scanned``: the paths to stamp, relative to ``origin``.

    Raises:
        DataError: there are no rows, two samples of a class have the same name, or validation
            images of ImageNet have each other's labels.
    """
    if not rows:
        raise DataError(f"{origin} contains no images.")
    check_known_labels(origin, rows)
    rows.sort(key=lambda row: (row[0], os.fsencode(os.path.dirname(row[1])), os.fsencode(row[1])))
    for one, other in itertools.pairwise(rows):
        if one[:2] == other[:2]:
            raise DataError(
                f"{origin} holds {one[1]} twice in class {one[0]}: remove one of the two."
            )
    wnids, names, sizes, *offsets = zip(*rows, strict=True)
    classes, labels = np.unique(np.array(wnids), return_inverse=True)
    return Index(
        origin,
        tuple(classes.tolist()),
        labels.astype(np.int64),
        np.array([os.fsencode(name) for name in names]),
        np.array(sizes, dtype=np.int64),
        np.zeros(len(rows), dtype=bool),
        {name: _stamp(origin, name) for name in scanned},
        np.array(offsets[0], dtype=np.int64) if offsets else None,
        flat,
        parquet,
    )


def open_index(origin: Path, scan: Callable[[], Index]) -> Index:
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
                index = scan()
                save_index(index)
    return index


def index_paths(origin: Path) -> list[Path]:
    """Possible paths of the index of ``origin``: beside it, or in the user's cache."""
    origin = Path(os.path.abspath(origin))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sn-imagenet"
    key = hashlib.sha256(os.fsencode(origin)).hexdigest()[:16]
    return [origin.with_name(f"{origin.name}.index.npz"), cache / f"{origin.name}-{key}.index.npz"]


def save_index(index: Index) -> Path:
    """Write the index atomically beside the data or, if that is not permitted, to the user's cache.
    Returns its path."""
    keys = ("classes", "flat", "parquet", "stamps", "sha256")
    about = {"version": VERSION, **{key: getattr(index, key) for key in keys}}
    keys = ("labels", "names", "sizes", "bad", "offsets")
    arrays = {key: getattr(index, key) for key in keys if getattr(index, key) is not None}
    beside, cached = index_paths(index.origin)
    path = beside if os.access(beside.parent, os.W_OK) else cached
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)
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
            arrays = dict(file)
        about = json.loads(str(arrays.pop("about")))
        version, sha256 = about.pop("version"), about.pop("sha256", None)
        index = Index(origin, **{**about, "classes": tuple(about["classes"])}, **arrays)
        if sha256:  # computing it again takes 7 s for ImageNet
            vars(index)["sha256"] = sha256
    except Exception as error:  # numpy, zipfile and json raise errors of many types
        raise DataError(
            f"{path} is not a complete index of {origin} ({error}). {rebuild}"
        ) from error
    if version != VERSION:
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
