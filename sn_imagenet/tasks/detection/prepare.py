"""Verify a folder in COCO's layout, for scripts/prepare_data.py."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from sn_imagenet.data.errors import DataError
from sn_imagenet.overrides import quoted
from sn_imagenet.tasks.detection.coco import Annotations, open_annotations
from sn_imagenet.tasks.detection.departures import COCO_IMAGES
from sn_imagenet.tasks.detection.images import read_image

_PREFIX = "instances_"


def prepare_coco(
    root: Path, *, verify: bool, workers: int, log: Callable[[str], None] = print
) -> bool:
    """Index the annotations ``root/annotations/instances_NAME.json`` of each folder ``root/NAME``
    of images, and decode these. Log the results and the ``data=`` arguments for train.py.

    Returns:
        False if a folder is missing, or an image cannot be decoded or has another size than its
        annotations say.

    Raises:
        DataError: a file or a value in it cannot be used, or an image is missing.
    """
    usable = True
    files = sorted((root / "annotations").glob(f"{_PREFIX}*.json"))
    named = {file.stem.removeprefix(_PREFIX): file for file in files}
    parts = {name: file for name, file in named.items() if (root / name).is_dir()}
    for name in sorted(named.keys() - parts.keys()):
        log(f"{name}: no folder {root / name}; expected its images there")
        usable = False
    for name, file in parts.items():
        annotations = open_annotations(file, root / name)
        log(f"{name}: {annotations.summary}")
        expected = COCO_IMAGES.get(name.removesuffix("2017")) if name.endswith("2017") else None
        if expected and len(annotations) != expected:
            log(f"  COCO 2017 has {expected:,} images: this set is incomplete")
        if verify:
            bad = _find_bad(annotations, root / name, workers)
            for reason in bad:
                log(f"  bad: {reason}")
            log(f"  every image was decoded: {len(bad)} bad")
            usable &= not bad
    if set(parts) >= {"train2017", "val2017"}:
        log(f"use: task=detection {quoted('data.root', str(root))}")
    elif len(parts) == 2:
        words = ["use: task=detection data=coco_format"]
        order = sorted(parts, key=lambda name: "train" not in name)
        for part, name in zip(("train", "val"), order, strict=True):
            words.append(quoted(f"data.{part}", str(root / name)))
            words.append(quoted(f"data.{part}_annotations", str(parts[name])))
        log(" ".join(words))
    return usable


def _find_bad(annotations: Annotations, folder: Path, workers: int) -> list[str]:
    def problem(position: int) -> str:
        try:
            read_image(annotations.image(position), folder)
        except DataError as error:
            return str(error)
        return ""

    count = len(annotations)
    with ThreadPool(workers) as pool:  # decoders release Python's lock
        problems = pool.imap(problem, range(count))
        bar = tqdm(problems, total=count, desc="decoding", delay=2, disable=None)
        return [reason for reason in bar if reason]
