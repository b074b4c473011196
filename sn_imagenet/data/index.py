"""The index of a data set's samples: built once, stored in a file, checked at each start."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import check_known_labels
from sn_imagenet.errors import as_text

LOG = logging.getLogger(__name__)
VERSION = 1


def prepare_command(folder: Path | str) -> str:
    """The command that indexes ``folder`` again, as a shell reads it."""
    return f"python scripts/prepare_data.py {shlex.quote(str(folder))}"


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
    ``checksums``: uint32 [N], CRC-32 of each file's bytes, if scripts/prepare_data.py has read
    them. ``notes``: what was passed over when the list was made, for messages.
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
    checksums: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def lists_same(self, other: Index) -> bool:
        """Whether both list the same samples; their marks and stamps may differ."""
        return self.classes == other.classes and all(
            np.array_equal(getattr(self, key), getattr(other, key))
            for key in ("labels", "names", "sizes", "offsets")
        )

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
            return as_text(f"{os.fsdecode(self.names[entry])} in {self.origin}")
        return as_text(self.path(entry))

    def path(self, entry: int) -> Path:
        """The path of an entry that is a separate file."""
        folder = self.origin if self.flat else self.origin / self.classes[self.labels[entry]]
        return folder / os.fsdecode(self.names[entry])


def build_index(origin: Path, rows: list[Any], scanned: Iterable[str], **options: Any) -> Index:
    """A new index without marks, from rows (class, name, size; offset if in an archive) in any
    order. ``scanned``: the paths to stamp, relative to ``origin``. ``options``: of the index.

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
        **options,
    )


class Split(NamedTuple):
    """``scan()`` lists the samples at ``origin``, a folder or an archive."""

    origin: Path
    scan: Callable[[], Index]

    def open(self) -> Index:
        """The stored index that fits the data. If there is none, a new one; the marks of a stored
        index of the same samples, such as that of a copied folder, are kept. If several processes
        of a machine start at once, only one scans.

        Raises:
            DataError: the samples are not those of a stored index, or ``scan`` failed.
        """
        index = load_index(self.origin)
        if index is None:
            with exclusive_lock(self.origin):
                index = load_index(self.origin) or self._rebuild()
        return index

    def _rebuild(self) -> Index:
        index = self.scan()
        for note in index.notes:
            LOG.warning("%s: %s", as_text(self.origin), as_text(note))
        stored = stored_indices(self.origin)
        same = [old for old, _ in stored if old is not None and index.lists_same(old)]
        if same:
            index = replace(index, bad=same[0].bad, checksums=same[0].checksums)
        elif stored:
            raise DataError(f"{stored[0][1]}. Rebuild it: {prepare_command(self.origin)}")
        try:
            save_index(index)
        except DataError as error:
            LOG.warning("%s: the next start lists %s again", error, as_text(self.origin))
        return index


def index_paths(origin: Path) -> list[Path]:
    """Possible paths of the index of ``origin``: beside it, or in the user's cache."""
    origin = Path(os.path.abspath(origin))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sn-imagenet"
    key = hashlib.sha256(os.fsencode(origin)).hexdigest()[:16]
    return [origin.with_name(f"{origin.name}.index.npz"), cache / f"{origin.name}-{key}.index.npz"]


def store_arrays(origin: Path, arrays: Mapping[str, Any]) -> Path:
    """Write an index of ``origin`` atomically as NPZ beside it or, if that is not possible, to the
    user's cache. Returns its path. To be called within :func:`exclusive_lock`.

    Raises:
        DataError: it can be written to neither.
    """
    failures = []
    for path in index_paths(origin):
        # One name per user and machine: what a killed write has left is overwritten by the next.
        partial = path.with_name(f".{path.name}.{os.getuid()}-{os.uname().nodename}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.parent.stat().st_mode & 0o222:  # which root could write all the same
                raise PermissionError(errno.EACCES, "the folder is read-only", str(path.parent))
            with open(partial, "wb") as file:
                np.savez(file, **arrays)
            partial.chmod(0o644)  # others train on the data too
            os.replace(partial, path)
            return path
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            failures.append(f"{path} ({error})")
    raise DataError(f"the index can be written neither to {' nor to '.join(failures)}")


def save_index(index: Index) -> Path:
    """Write the index as :func:`store_arrays` does, and return its path.

    Raises:
        DataError: it cannot be written, or another one would be read instead of it.
    """
    keys = ("classes", "flat", "parquet", "stamps", "sha256", "notes")
    about = {"version": VERSION, **{key: getattr(index, key) for key in keys}}
    keys = ("labels", "names", "sizes", "bad", "offsets", "checksums")
    arrays = {key: getattr(index, key) for key in keys if getattr(index, key) is not None}
    path = store_arrays(index.origin, {"about": json.dumps(about), **arrays})
    read = load_index(index.origin)
    if read is None or not np.array_equal(read.bad, index.bad) or not read.lists_same(index):
        raise DataError(f"the index was written to {path}, but another one is read in its place")
    return path


def load_index(origin: Path) -> Index | None:
    """The stored index of ``origin`` that fits it, the newest of them, or None."""
    return next((index for index, problem in stored_indices(origin) if not problem), None)


def stored_indices(origin: Path) -> list[tuple[Index | None, str]]:
    """Each stored index of ``origin``, the newest first; None if it cannot be read. With it, why it
    does not fit the data, as a clause that is empty if it does."""
    paths = [path for path in index_paths(origin) if path.is_file()]
    paths.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [_read_index(origin, path) for path in paths]


def _read_index(origin: Path, path: Path) -> tuple[Index | None, str]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(str(arrays.pop("about")))
        version, sha256 = about.pop("version"), about.pop("sha256", None)
        if version != VERSION:
            return None, f"{path} was written by another version of this project"
        about = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
        index = Index(origin, **about, **arrays)
    except OSError as error:
        return None, f"{path} cannot be read ({error})"
    except Exception as error:  # numpy, zipfile and json raise errors of many types
        return None, f"{path} is not a complete index of {origin} ({error})"
    if sha256:  # computing it again takes 7 s for ImageNet
        vars(index)["sha256"] = sha256
    for name, stamp in index.stamps.items():
        try:
            unchanged = _stamp(origin, name) == stamp
        except OSError:
            unchanged = False
        if not unchanged:
            changed = os.path.normpath(origin / name)
            return index, f"{changed} changed since the index {path} was built"
    return index, ""


def _stamp(origin: Path, name: str) -> list[int]:
    """[mtime (ns), size], size 0 for a folder. A folder's mtime changes with the names in it."""
    path = Path(os.path.normpath(origin / name))
    status = path.stat()
    return [status.st_mtime_ns, 0 if path.is_dir() else status.st_size]


@contextmanager
def exclusive_lock(origin: Path) -> Iterator[None]:
    name = hashlib.sha256(os.fsencode(os.path.abspath(origin))).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"sn-imagenet-{os.getuid()}-{name}.lock"
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
