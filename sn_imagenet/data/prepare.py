"""Find, index and verify the data set in a folder, for scripts/prepare_data.py."""

from __future__ import annotations

import multiprocessing
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sn_imagenet.config import IMAGENET_SAMPLES
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
from sn_imagenet.data.layouts import find_imagenet, open_splits, split_at
from sn_imagenet.data.scanning import progress
from sn_imagenet.errors import as_text
from sn_imagenet.overrides import quoted

_SPLIT_KEYS = {"training": "train", "validation": "val"}


def prepare_data(path: Path, *, verify: bool, mark: bool, workers: int) -> bool:
    """Index each split of the data set at ``path`` and decode all its files. Print the results and
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
    try:
        splits = find_imagenet(path) or {"only": split_at(path, "given")}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    usable = complete = True
    for name, split in splits.items():
        _say(f"{name} set: {split.origin}")
        try:
            index, reasons = _make_index(split, verify, mark, workers)
            with exclusive_lock(split.origin):
                written = save_index(index)
        except OSError as error:
            for problem in getattr(error, "problems", [error]):
                _say(f"  bad: {problem.filename}: {problem.strerror}")
            _say("  cannot be marked: mend or remove these folders and links, and start again")
            usable = complete = False
            continue
        for note in index.notes:
            _say(f"  {note}")
        for entry, reason in reasons.items():
            marked = ", marked" if index.bad[entry] else ""
            _say(f"  bad{marked}: {index.location(entry)}: {reason}")
            usable &= bool(marked)
        if verify:
            _say(f"  every file was decoded: {len(reasons)} bad")
        _say_counts(index, name)
        _say(f"  index: {written}")
    if not usable:
        _say("Training stops at a bad file. Replace these files, or add --mark to leave them out")
    if complete:
        usable &= _say_arguments(path, list(splits.values()))
    return usable


def _say(line: str) -> None:
    print(as_text(line))


def _make_index(
    split: Split, verify: bool, mark: bool, workers: int
) -> tuple[Index, dict[int, str]]:
    """The index with marks, and what is wrong with each bad entry."""
    index = split.scan()
    marked = _marked_names(split.origin)
    bad = np.array([name in marked for name in _names(index)])
    if not verify:
        return replace(index, bad=bad), {}
    count = len(bad)
    with multiprocessing.Pool(workers, _open_source, (index,)) as pool:
        checks = pool.imap(_check, range(count), chunksize=64)
        bar = progress(checks, "decoding", count, unit=" files")
        checksums, reasons = zip(*bar, strict=True)
    found = np.array([bool(reason) for reason in reasons])
    bad = found if mark else found & bad
    index = replace(index, bad=bad, checksums=np.array(checksums, dtype=np.uint32))
    return index, {entry: reasons[entry] for entry in np.flatnonzero(found).tolist()}


def _names(index: Index) -> Iterator[tuple[str, bytes]]:
    """(class, file name) of each entry."""
    for label, name in zip(index.labels, index.names, strict=True):
        yield index.classes[label], name


def _marked_names(origin: Path) -> set[tuple[str, bytes]]:
    """The files that a stored index marks, whether it still fits or not."""
    for index, _ in stored_indices(origin):
        if index is not None:
            return {name for name, bad in zip(_names(index), index.bad, strict=True) if bad}
    return set()


_source: IndexedSource


def _open_source(index: Index) -> None:
    global _source
    # Sizes that cannot be read are found entry by entry.
    _source = IndexedSource(replace(index, sizes=np.maximum(index.sizes, 0)))


def _check(entry: int) -> tuple[int, str]:
    """The CRC-32 of a file, and what is wrong with it."""
    checksum = 0
    try:
        data = _source.read(entry)
        checksum = zlib.crc32(data)
        decode(data)
    except UndecodableError as error:
        return checksum, str(error)
    except DataError as error:
        return checksum, str(error.__cause__ or error)
    return checksum, ""


def _say_counts(index: Index, split: str) -> None:
    labels = index.labels[~index.bad]
    counts = np.bincount(labels, minlength=len(index.classes))
    _say(
        f"  {len(labels):,} images in {len(counts):,} classes, {counts.min():,} to "
        f"{counts.max():,} in each"
    )
    if index.bad.any():
        _say(f"  {index.bad.sum():,} marked as bad and left out everywhere")
    expected = IMAGENET_SAMPLES.get(_SPLIT_KEYS.get(split, ""))
    if expected and len(counts) == IMAGENET_CLASSES and len(index.labels) != expected:
        _say(f"  ImageNet-1k has {expected:,}: this set is incomplete")


def _say_arguments(path: Path, splits: list[Split]) -> bool:
    """Say the arguments of train.py that select the data; False if it would refuse them."""
    origins = [os.path.abspath(split.origin) for split in splits]
    if len(splits) == 1:
        if {"train", "val"} <= set(splits[0].open().classes):
            advice = prepare_command(origins[0])
            _say(f"its classes train and val are sets of their own: {advice}")
            return False
        _say(f"use: data=imagefolder, with {quoted('data.train', origins[0])} or as data.val")
        return True
    try:
        if any(as_text(origin) != origin for origin in origins):
            raise DataError(f"their path is not UTF-8; rename {' and '.join(origins)}")
        train, _ = open_splits(*splits)
    except DataError as error:
        _say(f"train.py refuses these data: {error}")
        return False
    words = ["data=imagefolder", quoted("data.train", origins[0]), quoted("data.val", origins[1])]
    if len(train.classes) == IMAGENET_CLASSES:
        words = ["data=imagenet", quoted("data.root", os.path.abspath(path))]
    _say(" ".join(["use:", *words]))
    return True
