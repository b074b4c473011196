"""Annotations in COCO's format: read once, checked, and kept as arrays in an index file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import index_paths

LOG = logging.getLogger(__name__)
VERSION = 1
# Boxes of the official files end up to a pixel outside of their image; they are clipped.
OVERSHOOT = 2.0


@dataclass(frozen=True)
class Annotations:
    """The objects of N images, sorted by image id.

    ``names``: of the K categories, and ``category_ids`` int64 [K], ascending. Per image:
    ``image_ids`` int64 [N], ``files`` [N], ``sizes`` int64 [N, 2] (height, width), ``file_sizes``
    int64 [N] in bytes; its objects are ``starts[i]`` to ``starts[i + 1]`` of the M objects. Per
    object: ``ids`` int64 [M], ``labels`` int64 [M] (positions in ``names``), ``boxes`` float64
    [M, 4] (x, y, width, height), ``areas`` float64 [M], ``crowds`` bool [M]; ``masks`` uint8, the
    compressed run lengths of all masks, cut at ``mask_starts`` int64 [M + 1]. Without masks both
    are empty.
    """

    names: np.ndarray
    category_ids: np.ndarray
    image_ids: np.ndarray
    files: np.ndarray
    sizes: np.ndarray
    file_sizes: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    masks: np.ndarray
    mask_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def has_masks(self) -> bool:
        return len(self.mask_starts) > 0

    def objects(self, image: int) -> slice:
        """The objects of an image."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def rle(self, image: int, obj: int) -> dict[str, Any]:
        """The mask of object ``obj`` in ``image``, as pycocotools takes it."""
        counts = self.masks[self.mask_starts[obj] : self.mask_starts[obj + 1]].tobytes()
        return {"size": self.sizes[image].tolist(), "counts": counts}

    @cached_property
    def usable(self) -> np.ndarray:
        """bool [M]: the objects to train on, as in torchvision's reference: no crowds, and boxes
        with an area within the image."""
        per_object = np.repeat(self.sizes, np.diff(self.starts), axis=0)
        low = np.maximum(self.boxes[:, :2], 0)
        high = np.minimum(self.boxes[:, :2] + self.boxes[:, 2:], per_object[:, ::-1])
        return ~self.crowds & (high > low).all(axis=1)

    @cached_property
    def trainable(self) -> np.ndarray:
        """int64: the images with a usable object of more than one pixel in width and height."""
        large = self.usable & (self.boxes[:, 2:] > 1).all(axis=1)
        counts = np.add.reduceat(np.append(large, False), self.starts[:-1], dtype=np.int64)
        return np.flatnonzero((counts > 0) & (np.diff(self.starts) > 0))

    @cached_property
    def sha256(self) -> str:
        """Over all arrays."""
        digest = hashlib.sha256()
        for field in fields(self):
            array = np.ascontiguousarray(getattr(self, field.name))
            digest.update(f"{field.name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def to_coco(self) -> dict[str, Any]:
        """The content of a COCO file, with masks as compressed run lengths."""
        images, objects = [], []
        for image, image_id in enumerate(self.image_ids.tolist()):
            height, width = self.sizes[image].tolist()
            images.append({"id": image_id, "height": height, "width": width})
            part = self.objects(image)
            for obj in range(part.start, part.stop):
                entry = {
                    "id": int(self.ids[obj]),
                    "image_id": image_id,
                    "category_id": int(self.category_ids[self.labels[obj]]),
                    "bbox": self.boxes[obj].tolist(),
                    "area": float(self.areas[obj]),
                    "iscrowd": int(self.crowds[obj]),
                }
                if self.has_masks:
                    entry["segmentation"] = self.rle(image, obj)
                objects.append(entry)
        categories = [
            {"id": int(number), "name": str(name)}
            for number, name in zip(self.category_ids, self.names, strict=True)
        ]
        return {"info": {}, "images": images, "annotations": objects, "categories": categories}


def open_annotations(path: Path, folder: Path) -> Annotations:
    """The annotations of the images in ``folder``, from the index of ``path`` or, if there is none
    or one of the two has changed since, from the file.

    Raises:
        DataError: the file or a value in it cannot be used, or an image is missing.
    """
    for place, expected in ((path, Path.is_file), (folder, Path.is_dir)):
        if not expected(place):
            kind = "a file in COCO's format" if expected is Path.is_file else "a folder of images"
            raise DataError(f"{place}: no such file or folder; expected {kind}")
    stamp = json.dumps([VERSION, *(_stamp(p) for p in (path, folder)), os.path.abspath(folder)])
    for index in index_paths(path):
        with suppress(OSError, ValueError, KeyError), np.load(index, allow_pickle=False) as stored:
            if str(stored["stamp"]) == stamp:
                return Annotations(**{f.name: stored[f.name] for f in fields(Annotations)})
    annotations = read_annotations(path, folder)
    _save_index(annotations, path, stamp)
    return annotations


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_mtime_ns, status.st_size if path.is_file() else 0]


def _save_index(annotations: Annotations, path: Path, stamp: str) -> None:
    """Write the index beside the file or, if that is not possible, to the user's cache. If neither
    is possible, say so."""
    arrays = {field.name: getattr(annotations, field.name) for field in fields(annotations)}
    failures = []
    for target in index_paths(path):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                partial = Path(folder, target.name)
                np.savez(partial, stamp=np.array(stamp), **arrays)
                partial.chmod(0o644)  # others train on the data too
                partial.replace(target)
            return
        except OSError as error:
            failures.append(f"{target} ({error})")
    LOG.warning(
        "the index can be written neither to %s: the next start reads %s again",
        " nor to ".join(failures),
        path,
    )


def read_annotations(path: Path, folder: Path) -> Annotations:
    """As :func:`open_annotations`, from the file."""
    content = _parse(path)
    categories = _by_id(path, content["categories"], "category", {"name": str})
    images = _by_id(path, content["images"], "image", _IMAGE)
    if not images or not categories:
        raise DataError(
            f"{path}: it has {len(images)} images and {len(categories)} categories; expected at "
            "least one image and one category"
        )
    file_sizes = _file_sizes(path, folder, [image["file_name"] for image in images.values()])
    by_image: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    for entry in _by_id(path, content["annotations"], "annotation", _ANNOTATION).values():
        _check_annotation(path, entry, images, categories)
        by_image[entry["image_id"]].append(entry)
    objects = [entry for number in sorted(images) for entry in by_image[number]]
    ordered = [images[number] for number in sorted(images)]
    masks, mask_starts = _masks(path, objects, images)
    position = {number: index for index, number in enumerate(sorted(categories))}
    boxes = np.array([entry["bbox"] for entry in objects], dtype=np.float64).reshape(-1, 4)
    return Annotations(
        names=np.array([categories[number]["name"] for number in position]),
        category_ids=np.array(list(position), dtype=np.int64),
        image_ids=np.array(sorted(images), dtype=np.int64),
        files=np.array([image["file_name"] for image in ordered]),
        sizes=np.array([[image["height"], image["width"]] for image in ordered], dtype=np.int64),
        file_sizes=np.array([file_sizes[i["file_name"]] for i in ordered], dtype=np.int64),
        starts=np.cumsum([0, *(len(by_image[number]) for number in sorted(images))]),
        ids=np.array([entry["id"] for entry in objects], dtype=np.int64),
        labels=np.array([position[e["category_id"]] for e in objects], dtype=np.int64),
        boxes=boxes,
        areas=np.array(
            [entry.get("area", box[2] * box[3]) for entry, box in zip(objects, boxes, strict=True)],
            dtype=np.float64,
        ),
        crowds=np.array([bool(entry.get("iscrowd", 0)) for entry in objects], dtype=bool),
        masks=masks,
        mask_starts=mask_starts,
    )


def _parse(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: no list '{key}'; expected a file in COCO's format")
    return content


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)
    return numbers and len(value) == 4 and all(map(math.isfinite, value))


_EXPECTED: dict[Callable[[Any], bool] | type, str] = {
    _is_whole: "a whole number",
    _is_side: "a whole number above 0",
    _is_box: "four finite numbers (x, y, width, height)",
    str: "a string",
}
_IMAGE = {"file_name": str, "height": _is_side, "width": _is_side}
_ANNOTATION = {"image_id": _is_whole, "category_id": _is_whole, "bbox": _is_box}


def _by_id(
    path: Path, entries: list[Any], kind: str, expected: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """The entries by their id, each with the ``expected`` values."""
    result: dict[int, dict[str, Any]] = {}
    checks = {"id": _is_whole, **expected}
    for number, entry in enumerate(entries):
        for key, check in checks.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            valid = isinstance(value, check) if isinstance(check, type) else check(value)
            if not valid:
                name = f"{kind} {entry['id']}" if key != "id" else f"{kind} number {number + 1}"
                raise DataError(f"{path}: {name}: {key}={value!r}: expected {_EXPECTED[check]}")
        if entry["id"] in result:
            raise DataError(f"{path}: two entries are {kind} {entry['id']}; ids must differ")
        result[entry["id"]] = entry
    return result


def _check_annotation(
    path: Path,
    entry: Mapping[str, Any],
    images: Mapping[int, Any],
    categories: Mapping[int, Any],
) -> None:
    for key, known, kind in (
        ("image_id", images, "images"),
        ("category_id", categories, "categories"),
    ):
        if entry[key] not in known:
            raise DataError(
                f"{path}: annotation {entry['id']}: {key}={entry[key]}: expected an id of the "
                f"{len(known)} {kind} of this file"
            )
    image, (x, y, width, height) = images[entry["image_id"]], entry["bbox"]
    if (
        min(x, y) < -OVERSHOOT
        or x + width > image["width"] + OVERSHOOT
        or y + height > image["height"] + OVERSHOOT
    ):
        raise DataError(
            f"{path}: annotation {entry['id']}: bbox={entry['bbox']} is outside of image "
            f"{image['id']}, {image['width']} x {image['height']} pixels; expected x, y, width and "
            "height in pixels"
        )


def _file_sizes(path: Path, folder: Path, names: list[str]) -> dict[str, int]:
    """Bytes of each file; one listing per folder, since a stat per file takes minutes on NFS."""
    found: dict[str, int] = {}
    for sub in sorted({os.path.dirname(name) for name in names}):
        with suppress(FileNotFoundError), os.scandir(folder / sub) as entries:
            wanted = {os.path.join(sub, entry.name): entry for entry in entries}
            found |= {n: wanted[n].stat().st_size for n in names if n in wanted}
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(names)} images of {path}, such as "
            f"{missing[0]}; expected the folder that the file describes"
        )
    return found


def _masks(
    path: Path, objects: list[dict[str, Any]], images: Mapping[int, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """All masks as compressed run lengths, and where each begins; empty if any object has none."""
    if not all(entry.get("segmentation") for entry in objects):
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    counts = []
    for entry in objects:
        image = images[entry["image_id"]]
        try:
            counts.append(_run_lengths(entry["segmentation"], image["height"], image["width"]))
        except (DataError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}: annotation {entry['id']}: segmentation: {error}; expected polygons of at "
                "least three points, or run lengths of the image's size"
            ) from error
    starts = np.cumsum([0, *map(len, counts)])
    return np.frombuffer(b"".join(counts), np.uint8), starts


def _run_lengths(segmentation: Any, height: int, width: int) -> bytes:
    """The union of polygons, or run lengths, as compressed run lengths."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
            raise DataError("a polygon of fewer than three points")
        runs = mask.merge(mask.frPyObjects(segmentation, height, width))
    else:
        runs = segmentation
        if list(runs["size"]) != [height, width]:
            raise DataError(f"a mask of size {runs['size']} for an image of {[height, width]}")
        if isinstance(runs["counts"], list):
            if sum(runs["counts"]) != height * width:
                raise DataError("run lengths that do not add up to the image's pixels")
            runs = mask.frPyObjects(runs, height, width)
    counts = runs["counts"]
    return counts.encode() if isinstance(counts, str) else counts


def describe(annotations: Annotations) -> str:
    """One line: numbers of images, objects and categories, and of what is not used."""
    objects, crowds = len(annotations.ids), int(annotations.crowds.sum())
    empty = int((np.diff(annotations.starts) == 0).sum())
    unused = len(annotations.names) - len(Counter(annotations.labels.tolist()))
    parts = [
        f"{len(annotations)} images",
        f"{objects} objects" + ("" if annotations.has_masks else " without masks"),
        f"{len(annotations.names)} categories",
    ]
    counts = {
        "images without objects": empty,
        "crowds": crowds,
        "boxes without area": int((~annotations.usable).sum()) - crowds,
        "categories without objects": unused,
    }
    return ", ".join(parts + [f"{count} {name}" for name, count in counts.items() if count])
