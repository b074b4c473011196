"""Find, index and verify the data set in a folder, for scripts/prepare_data.py."""

from __future__ import annotations

import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sn_imagenet.config import IMAGENET_SAMPLES, DataConfig
from sn_imagenet.data.decode import UndecodableError, decode
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import IMAGENET_CLASSES
from sn_imagenet.data.index import (
    Index,
    Split,
    exclusive_lock,
    prepare_command,
    save_index,
    stored_indices,
)
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.layouts import find_imagenet, split_at
from sn_imagenet.data.sources import open_source
from sn_imagenet.errors import as_text
from sn_imagenet.overrides import quoted

_SPLIT_KEYS = {"training": "train", "validation": "val"}
_CHUNK = 64

Log = Callable[[str], None]


def prepare_data(path: Path, *, verify: bool, mark: bool, workers: int, log: Log = print) -> bool:
    """Index each split of the data set at ``path`` and decode all its files. Log the results and
    the ``data=`` arguments for train.py, if it opens the data with them.

    Args:
        path: a folder with ImageNet in any layout, a folder of class folders, or an archive.
        verify: whether to decode the files. If not, or without ``mark``, the files that are marked
            in a stored index and still bad stay marked.
        mark: whether to mark files that cannot be decoded, which leaves them out everywhere.
        workers: number of decoding processes.

    Returns:
        False if there are bad files that are not marked, or training would refuse the data.

    Raises:
        DataError: there is no data set, or it is unusable.
    """

    def say(line: str) -> None:
        log(as_text(line))

    try:
        splits = find_imagenet(path) or {"only": split_at(path, "given")}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    usable = True
    indices = []
    for name, split in splits.items():
        say(f"{name} set: {split.origin}")
        try:
            index, bad, written = _prepare_split(split, verify, mark, workers)
        except OSError as error:
            for problem in getattr(error, "problems", [error]):
                say(f"  bad: {problem.filename}: {problem.strerror}")
            say("  cannot be marked: mend or remove these folders and links, and start again")
            usable = False
            continue
        for note in index.notes:
            say(f"  {note}")
        for entry, reason in bad:
            marked = ", marked" if index.bad[entry] else ""
            say(f"  bad{marked}: {index.location(entry)}: {reason}")
            usable &= bool(marked)
        if verify:
            say(f"  every file was decoded: {len(bad)} bad")
        for line in _describe_counts(index, name):
            say(f"  {line}")
        say(f"  index: {written}")
        indices.append(index)
    if not usable:
        say("Training stops at a bad file. Replace these files, or add --mark to leave them out")
    if len(indices) == len(splits):
        usable &= _say_arguments(path, indices, say)
    return usable


def _prepare_split(
    split: Split, verify: bool, mark: bool, workers: int
) -> tuple[Index, list[tuple[int, str]], Path]:
    """(index with marks, (entry, reason) of each bad file, where the index was written)."""
    index = split.scan()
    marked = _marked_names(split.origin)
    keep = [name in marked for name in _names(index)]
    index = replace(index, bad=np.array(keep), checksums=None)
    bad: list[tuple[int, str]] = []
    if verify:
        bad, checksums = find_bad(index, workers)
        flags = np.zeros_like(index.bad)
        for entry, _ in bad:
            flags[entry] = mark or index.bad[entry]
        index = replace(index, bad=flags, checksums=checksums)
    with exclusive_lock(split.origin):
        return index, bad, save_index(index)


def _names(index: Index) -> Iterator[tuple[str, bytes]]:
    """(class, file name) of each entry."""
    for label, name in zip(index.labels, index.names, strict=True):
        yield index.classes[label], name


def _marked_names(origin: Path) -> set[tuple[str, bytes]]:
    """The files that a stored index marks, whether it still fits or not."""
    for _, index in stored_indices(origin):
        if isinstance(index, Index):
            return {name for name, bad in zip(_names(index), index.bad, strict=True) if bad}
    return set()


def find_bad(index: Index, workers: int) -> tuple[list[tuple[int, str]], np.ndarray]:
    """(entry, reason) of every file that cannot be read or decoded, whether marked or not, and the
    CRC-32 of each file (uint32 [N])."""
    count = len(index.labels)
    bad, checksums = [], np.zeros(count, dtype=np.uint32)
    with (
        multiprocessing.Pool(workers, _set_index, (index,)) as pool,
        tqdm(total=count, desc="decoding", unit=" files", delay=2, disable=None) as bar,
    ):
        starts = range(0, count, _CHUNK)
        for start, found in zip(starts, pool.imap(_check_chunk, starts), strict=True):
            for entry, (checksum, reason) in enumerate(found, start):
                checksums[entry] = checksum
                if reason:
                    bad.append((entry, reason))
            bar.update(len(found))
    return bad, checksums


def _say_arguments(path: Path, indices: list[Index], say: Log) -> bool:
    """Say the arguments of train.py that select the data; False if it would refuse them."""
    if len(indices) == 1:
        only = os.path.abspath(indices[0].origin)
        if {"train", "val"} <= set(indices[0].classes):
            say(f"its classes train and val are sets of their own: {prepare_command(only)}")
            return False
        say(f"use: data=imagefolder, with {quoted('data.train', only)} or as data.val")
        return True
    source, options = "imagefolder", {"train": indices[0].origin, "val": indices[1].origin}
    if all(len(index.classes) == IMAGENET_CLASSES for index in indices):
        source, options = "imagenet", {"root": path}
    paths = {key: os.path.abspath(value) for key, value in options.items()}
    pixel = (1.0, 1.0, 1.0)
    data = DataConfig(source, source, 1, 1, pixel, pixel, 0, "exact")
    try:
        if any(as_text(value) != value for value in paths.values()):
            raise DataError(f"their path is not UTF-8; rename {' and '.join(paths.values())}")
        open_source(replace(data, **paths))  # type: ignore[arg-type]
    except DataError as error:
        say(f"train.py refuses these data: {error}")
        return False
    say(" ".join(["use:", f"data={source}", *(quoted(f"data.{k}", v) for k, v in paths.items())]))
    return True


def _describe_counts(index: Index, split: str) -> Iterator[str]:
    labels = index.labels[~index.bad]
    counts = np.bincount(labels, minlength=len(index.classes))
    yield (
        f"{len(labels):,} images in {len(counts):,} classes, {counts.min():,} to "
        f"{counts.max():,} in each"
    )
    if index.bad.any():
        yield f"{index.bad.sum():,} marked as bad and left out everywhere"
    expected = IMAGENET_SAMPLES.get(_SPLIT_KEYS.get(split, ""))
    if expected and len(counts) == IMAGENET_CLASSES and len(index.labels) != expected:
        yield f"ImageNet-1k has {expected:,}: this set is incomplete"


_source: IndexedSource


def _set_index(index: Index) -> None:
    global _source
    # Sizes that cannot be read are found entry by entry.
    sizes = np.maximum(index.sizes, 0)
    nothing = np.zeros_like(index.bad)
    _source = IndexedSource(replace(index, bad=nothing, sizes=sizes, checksums=None))


def _check_chunk(start: int) -> list[tuple[int, str]]:
    """(CRC-32, what is wrong) of each file."""
    found = []
    for entry in range(start, min(start + _CHUNK, len(_source))):
        checksum, reason = 0, ""
        try:
            data = _source.read(entry)
            checksum = zlib.crc32(data)
            decode(data)
        except UndecodableError as error:
            reason = str(error)
        except DataError as error:
            reason = str(error.__cause__ or error)
        found.append((checksum, reason))
    return found


def default_workers() -> int:
    """The number of cores available to this process."""
    return len(os.sched_getaffinity(0))
