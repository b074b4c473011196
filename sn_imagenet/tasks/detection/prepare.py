"""Verify a folder in COCO's layout, for scripts/prepare_data.py."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from sn_imagenet.data.errors import DataError
from sn_imagenet.tasks.detection.coco import Annotations, describe, open_annotations
from sn_imagenet.tasks.detection.departures import COCO_IMAGES
from sn_imagenet.tasks.detection.images import read_image

_PREFIX = "instances_"


def annotation_files(root: Path) -> dict[str, Path]:
    """``root/annotations/instances_NAME.json`` by NAME, where there is a folder ``root/NAME``."""
    files = sorted((root / "annotations").glob(f"{_PREFIX}*.json"))
    named = {file.stem.removeprefix(_PREFIX): file for file in files}
    return {name: file for name, file in named.items() if (root / name).is_dir()}


def prepare_coco(
    root: Path, *, verify: bool, workers: int, log: Callable[[str], None] = print
) -> bool:
    """Index each part of the data set at ``root`` and decode all its images. Log the results and
    the ``data=`` arguments for train.py.

    Returns:
        False if an image cannot be decoded or has another size than its annotations say.

    Raises:
        DataError: a file or a value in it cannot be used, or an image is missing.
    """
    usable, files = True, annotation_files(root)
    for name, file in files.items():
        annotations = open_annotations(file, root / name)
        log(f"{name}: {describe(annotations)}")
        expected = COCO_IMAGES.get(name.removesuffix("2017")) if name.endswith("2017") else None
        if expected and len(annotations) != expected:
            log(f"  COCO 2017 has {expected:,} images: this set is incomplete")
        if verify:
            bad = _find_bad(annotations, root / name, workers)
            for reason in bad:
                log(f"  bad: {reason}")
            log(f"  every image was decoded: {len(bad)} bad")
            usable &= not bad
    if set(files) >= {"train2017", "val2017"}:
        log(f"use: task=detection data.root={root}")
    elif len(files) == 2:
        train, val = sorted(files, key=lambda name: "train" not in name)
        parts = {"train": train, "val": val}
        log("use: task=detection data=coco_format " + " ".join(
            f"data.{part}={root / name} data.{part}_annotations={files[name]}"
            for part, name in parts.items()
        ))  # fmt: skip
    return usable


def _find_bad(annotations: Annotations, folder: Path, workers: int) -> list[str]:
    with multiprocessing.Pool(workers, _set_data, (annotations, folder)) as pool:
        results = pool.imap(_check, range(len(annotations)), chunksize=64)
        bar = tqdm(results, total=len(annotations), desc="decoding", delay=2, disable=None)
        return [reason for reason in bar if reason]


_data: tuple[Annotations, Path]  # of a worker, which gets it once


def _set_data(annotations: Annotations, folder: Path) -> None:
    global _data
    _data = (annotations, folder)


def _check(position: int) -> str:
    try:
        read_image(*_data, position)
    except DataError as error:
        return str(error)
    return ""
