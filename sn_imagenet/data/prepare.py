"""Finds, indexes and verifies what lies below a folder: scripts/prepare_data.py."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sn_imagenet.config import IMAGENET_SAMPLES
from sn_imagenet.data.decode import UndecodableError, decode
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import Index, load, make, save
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.layouts import (
    IMAGENET_CLASSES,
    Part,
    folders,
    imagenet_train,
    imagenet_val,
)

_KEYS = {"training": "train", "validation": "val"}
_CHUNK = 64

Say = Callable[[str], None]


def prepare_data(path: Path, *, verify: bool, mark: bool, workers: int, say: Say = print) -> bool:
    """Index each part of a data set that lies at ``path``, decode every file of it, and say what
    was found and which ``data=`` line reads it.

    Args:
        path: a folder of ImageNet in any layout, a folder of class folders, or an archive.
        verify: whether to decode the files; if not, an index with its marks stays as it is.
        mark: whether files that cannot be decoded are marked, which leaves them out everywhere.
        workers: processes that decode.

    Returns:
        Whether no file is bad that is not marked.

    Raises:
        DataError: there is no data set, or it is not usable as a whole.
    """
    parts = find_parts(path)
    sound = True
    classes = set()
    for name, part in parts.items():
        index, note = _up_to_date(part)
        say(f"{name} set: {part.origin} ({note})")
        if verify:
            bad = find_bad(index, workers)
            for sample, reason in bad:
                say(f"  bad: {index.where(sample)}: {reason}")
            flags = np.zeros_like(index.bad)
            flags[[sample for sample, _ in bad]] = mark
            index = replace(index, bad=flags)
            save(index)
            sound &= mark or not bad
            say(f"  every file was decoded: {len(bad)} bad{', marked' if bad and mark else ''}")
        for line in _counts(index, name):
            say(f"  {line}")
        classes.add(len(index.listing.classes))
    if not sound:
        say("A training would stop at a bad file. Mend them, or leave them out: add --mark")
    say(f"use: {data_line(path, parts, classes == {IMAGENET_CLASSES})}")
    return sound


def find_parts(path: Path) -> dict[str, Part]:
    """The parts of the data set at ``path``, by name.

    Raises:
        DataError: there is nothing there.
    """

    def imagenet(root: Path) -> dict[str, Part]:
        found = {"training": imagenet_train(root), "validation": imagenet_val(root)}
        return {name: part for name, part in found.items() if part is not None}

    if path.is_dir() and (parts := imagenet(path)):
        return parts
    for root in list(path.parents)[:4]:  # Kaggle's val/ lies four folders below
        for name, part in imagenet(root).items():
            if part.origin == path:
                return {name: part}
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or archive.")
    if not path.is_dir():
        raise DataError(
            f"{path} is none of ImageNet's archives: expected ILSVRC2012_img_train.tar or "
            "ILSVRC2012_img_val.tar."
        )
    return {"only": folders(path, "given")}


def find_bad(index: Index, workers: int) -> list[tuple[int, str]]:
    """(place in the index, reason) of every file that cannot be read or decoded, marked or not."""
    source = IndexedSource(replace(index, bad=np.zeros_like(index.bad)))
    starts = range(0, len(source), _CHUNK)
    with (
        multiprocessing.Pool(workers, _set_source, (source,)) as pool,
        tqdm(total=len(source), desc="decoding", unit=" files", delay=2, disable=None) as bar,
    ):
        bad = []
        for done, found in pool.imap(_bad_of_chunk, starts):
            bar.update(done)
            bad.extend(found)
    return bad


def data_line(path: Path, parts: dict[str, Part], is_imagenet: bool) -> str:
    """What to give train.py."""
    if is_imagenet and len(parts) == 2:
        return f"data=imagenet data.root={path}"
    if not all(part.origin.exists() for part in parts.values()):  # parquet files
        return "data=imagenet, if both parts have ImageNet's 1,000 classes"
    if len(parts) == 2:
        train, val = (parts[name].origin for name in ("training", "validation"))
        return f"data=imagefolder data.train={train} data.val={val}"
    origin = next(iter(parts.values())).origin
    return f"data=imagefolder, with {origin} as data.train or data.val, if it has class folders"


def _up_to_date(part: Part) -> tuple[Index, str]:
    note = "indexed anew: it changed since"
    try:
        index = load(part.origin)
        if index is None:
            note = "indexed"
        elif _has_the_sizes(index):
            return index, "its index is up to date"
    except DataError:
        pass
    index = make(part.scan)
    save(index)
    return index, note


def _has_the_sizes(index: Index) -> bool:
    """Of each file of its own; the start of a run, for which that takes too long, looks at the
    folders alone, which do not tell that a file in them was written to."""
    listing = index.listing
    if listing.offsets is not None:
        return True
    sizes = (os.stat(index.path(sample)).st_size for sample in range(len(listing.sizes)))
    return all(size == expected for size, expected in zip(sizes, listing.sizes, strict=True))


def _counts(index: Index, part: str) -> Iterator[str]:
    listing = index.listing
    labels = listing.labels[~index.bad]
    counts = np.bincount(labels, minlength=len(listing.classes))
    yield (
        f"{len(labels):,} images in {len(counts):,} classes, {counts.min():,} to "
        f"{counts.max():,} in each"
    )
    if index.bad.any():
        yield f"{index.bad.sum():,} marked as bad and left out everywhere"
    expected = IMAGENET_SAMPLES[_KEYS[part]] if part in _KEYS else None
    if expected and len(counts) == IMAGENET_CLASSES and len(listing.labels) != expected:
        yield f"ImageNet-1k has {expected:,}: this is not all of it"


_source: IndexedSource


def _set_source(source: IndexedSource) -> None:
    global _source
    _source = source


def _bad_of_chunk(start: int) -> tuple[int, list[tuple[int, str]]]:
    stop = min(start + _CHUNK, len(_source))
    bad = []
    for sample in range(start, stop):
        try:
            decode(_source.read(sample))
        except (UndecodableError, DataError) as error:
            bad.append((sample, str(error)))
    return stop - start, bad


def default_workers() -> int:
    """One process for each core that this one may use."""
    return len(os.sched_getaffinity(0))
