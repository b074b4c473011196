"""Find, index and verify the data set in a folder, for scripts/prepare_data.py."""

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
from sn_imagenet.data.imagenet_labels import IMAGENET_CLASSES
from sn_imagenet.data.index import Index, load_index, save_index
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.layouts import (
    Split,
    class_folder_split,
    find_imagenet_train,
    find_imagenet_val,
)

_SPLIT_KEYS = {"training": "train", "validation": "val"}
_CHUNK = 64

Log = Callable[[str], None]


def prepare_data(path: Path, *, verify: bool, mark: bool, workers: int, log: Log = print) -> bool:
    """Index each split of the data set at ``path`` and decode all its files. Log the results and
    the ``data=`` arguments for train.py.

    Args:
        path: a folder with ImageNet in any layout, a folder of class folders, or an archive.
        verify: whether to decode the files. If not, a stored index keeps its marks.
        mark: whether to mark files that cannot be decoded, which leaves them out everywhere.
        workers: number of decoding processes.

    Returns:
        False if there are bad files that are not marked.

    Raises:
        DataError: there is no data set, or it is unusable.
    """
    splits = find_splits(path)
    usable = True
    classes = set()
    for name, split in splits.items():
        index, status = _load_or_update_index(split)
        log(f"{name} set: {split.origin} ({status})")
        if verify:
            bad = find_bad(index, workers)
            for entry, reason in bad:
                log(f"  bad: {index.location(entry)}: {reason}")
            flags = np.zeros_like(index.bad)
            flags[[entry for entry, _ in bad]] = mark
            index = replace(index, bad=flags)
            save_index(index)
            usable &= mark or not bad
            log(f"  every file was decoded: {len(bad)} bad{', marked' if bad and mark else ''}")
        for line in _describe_counts(index, name):
            log(f"  {line}")
        classes.add(len(index.classes))
    if not usable:
        log("Training stops at a bad file. Replace these files, or add --mark to leave them out")
    log(f"use: {data_line(path, splits, classes == {IMAGENET_CLASSES})}")
    return usable


def find_splits(path: Path) -> dict[str, Split]:
    """The splits of the data set at ``path``, by name.

    Raises:
        DataError: there is no data set.
    """

    def imagenet(root: Path) -> dict[str, Split]:
        candidates = {"training": find_imagenet_train(root), "validation": find_imagenet_val(root)}
        return {name: split for name, split in candidates.items() if split is not None}

    if path.is_dir() and (splits := imagenet(path)):
        return splits
    for root in list(path.parents)[:4]:  # Kaggle's val/ is four folders below
        for name, split in imagenet(root).items():
            if split.origin == path:
                return {name: split}
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or archive.")
    if not path.is_dir():
        raise DataError(
            f"{path} is not an archive of ImageNet: expected ILSVRC2012_img_train.tar or "
            "ILSVRC2012_img_val.tar."
        )
    return {"only": class_folder_split(path, "given")}


def find_bad(index: Index, workers: int) -> list[tuple[int, str]]:
    """(entry, reason) of every file that cannot be read or decoded, whether marked or not."""
    source = IndexedSource(replace(index, bad=np.zeros_like(index.bad)))
    starts = range(0, len(source), _CHUNK)
    with (
        multiprocessing.Pool(workers, _set_source, (source,)) as pool,
        tqdm(total=len(source), desc="decoding", unit=" files", delay=2, disable=None) as bar,
    ):
        bad = []
        for done, bad_in_chunk in pool.imap(_find_bad_in_chunk, starts):
            bar.update(done)
            bad.extend(bad_in_chunk)
    return bad


def data_line(path: Path, splits: dict[str, Split], is_imagenet: bool) -> str:
    """The arguments of train.py that select the data."""
    if is_imagenet and len(splits) == 2:
        return f"data=imagenet data.root={path}"
    if not all(split.origin.exists() for split in splits.values()):  # parquet files
        return "data=imagenet, if both splits have ImageNet's 1,000 classes"
    if len(splits) == 2:
        train, val = (splits[name].origin for name in ("training", "validation"))
        return f"data=imagefolder data.train={train} data.val={val}"
    origin = next(iter(splits.values())).origin
    return f"data=imagefolder, with {origin} as data.train or data.val, if it has class folders"


def _load_or_update_index(split: Split) -> tuple[Index, str]:
    status = "indexed again because it changed"
    try:
        index = load_index(split.origin)
        if index is None:
            status = "indexed"
        elif _file_sizes_match(index):
            return index, "index is up to date"
    except DataError:
        pass
    index = split.scan()
    save_index(index)
    return index, status


def _file_sizes_match(index: Index) -> bool:
    """Whether all separate files have their indexed sizes. The start of a run cannot afford this
    check. It compares only the folders' times, which do not change when a file is rewritten."""
    return index.offsets is not None or all(
        index.path(entry).stat().st_size == size for entry, size in enumerate(index.sizes)
    )


def _describe_counts(index: Index, split: str) -> Iterator[str]:
    labels = index.labels[~index.bad]
    counts = np.bincount(labels, minlength=len(index.classes))
    yield (
        f"{len(labels):,} images in {len(counts):,} classes, {counts.min():,} to "
        f"{counts.max():,} in each"
    )
    if index.bad.any():
        yield f"{index.bad.sum():,} marked as bad and left out everywhere"
    expected = IMAGENET_SAMPLES[_SPLIT_KEYS[split]] if split in _SPLIT_KEYS else None
    if expected and len(counts) == IMAGENET_CLASSES and len(index.labels) != expected:
        yield f"ImageNet-1k has {expected:,}: this set is incomplete"


_source: IndexedSource


def _set_source(source: IndexedSource) -> None:
    global _source
    _source = source


def _find_bad_in_chunk(start: int) -> tuple[int, list[tuple[int, str]]]:
    stop = min(start + _CHUNK, len(_source))
    bad = []
    for sample in range(start, stop):
        try:
            decode(_source.read(sample))
        except (UndecodableError, DataError) as error:
            bad.append((sample, str(error)))
    return stop - start, bad


def default_workers() -> int:
    """The number of cores available to this process."""
    return len(os.sched_getaffinity(0))
