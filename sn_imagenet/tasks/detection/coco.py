"""Annotations in COCO's format: read once, checked, and kept by image in an index file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import exclusive_lock, index_paths, store_arrays

LOG = logging.getLogger(__name__)
VERSION = 3
# Boxes of the official files end up to a pixel outside of their image; they are clipped.
OVERSHOOT = 2.0
# Of a box, in pixels: thinner ones lose their area in float32 when an image is flipped or resized.
LEAST_SIDE = 1e-3


@dataclass(frozen=True)
class Annotations:
    """N images with their objects, sorted by image id.

    ``categories``: their entries in the file, sorted by id. ``has_masks``: whether every object has
    a mask. ``summary``: one line with the numbers of images, objects and categories, and of what is
    not used. ``sizes``: int64 [N, 2] (height, width). ``trainable``: int64, the positions of the
    images with a usable object of more than one pixel in width and height. ``records``: uint8, the
    images as JSON, cut at ``starts``, int64 [N + 1]; ``sha256`` is over them and the categories.
    """

    categories: list[dict[str, Any]]
    has_masks: bool
    summary: str
    sha256: str
    sizes: np.ndarray
    trainable: np.ndarray
    records: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def names(self) -> list[str]:
        """Of the categories."""
        return [category["name"] for category in self.categories]

    def image(self, position: int) -> dict[str, Any]:
        """The entry of an image, with its objects as ``annotations``, their masks as compressed run
        lengths, and the bytes of its file as ``file_size``."""
        record = self.records[self.starts[position] : self.starts[position + 1]]
        image: dict[str, Any] = json.loads(record.tobytes())
        return image

    def to_coco(self) -> dict[str, Any]:
        """The content of a COCO file, with its objects numbered from 1."""
        images = [self.image(position) for position in range(len(self))]
        objects = [entry for image in images for entry in image["annotations"]]
        # pycocotools reads an id of 0 as "not found".
        objects = [entry | {"id": number} for number, entry in enumerate(objects, start=1)]
        return {"images": images, "annotations": objects, "categories": self.categories}


def open_annotations(path: Path, folder: Path) -> Annotations:
    """The annotations of the images in ``folder``, from the index of ``path`` or, if there is none
    or one of the two has changed since, from the file.

    Raises:
        DataError: the file or a value in it cannot be used, or an image is missing.
    """
    if not path.is_file() or not folder.is_dir():
        raise DataError(
            f"{folder if path.is_file() else path}: no such file or folder; expected annotations "
            "in COCO's format and the folder of their images"
        )
    stamp = [path.stat().st_size, *(p.stat().st_mtime_ns for p in (path, folder))]
    origin = json.dumps([VERSION, *stamp, os.path.abspath(folder)])
    with exclusive_lock(path):
        for index in index_paths(path):
            # numpy, zipfile and json raise errors of many types.
            with suppress(Exception), np.load(index) as file:
                stored = dict(file)
                if str(stored.pop("origin")) == origin:
                    return Annotations(**json.loads(str(stored.pop("about"))), **stored)
        annotations = read_annotations(path, folder)
        arrays = {k: v for k, v in vars(annotations).items() if isinstance(v, np.ndarray)}
        about = {k: v for k, v in vars(annotations).items() if k not in arrays}
        try:
            store_arrays(path, {"origin": origin, "about": json.dumps(about), **arrays})
        except DataError as error:
            LOG.warning("%s: the next start reads %s again", error, path)
    return annotations


def read_annotations(path: Path, folder: Path) -> Annotations:
    """As :func:`open_annotations`, from the file."""
    content = _parse(path)
    images, categories = content["images"], content["categories"]
    if not images or not categories:
        raise DataError(
            f"{path}: it has {len(images)} images and {len(categories)} categories; expected at "
            "least one image and one category"
        )
    missing = []
    for image in images.values():
        try:
            image |= {"file_size": (folder / image["file_name"]).stat().st_size, "annotations": []}
        except OSError:
            missing.append(image["file_name"])
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(images)} images of {path}, such as "
            f"{missing[0]}; expected the folder that the file describes"
        )
    objects = [_object(path, entry, content) for entry in content["annotations"].values()]
    if objects and all(max(entry["bbox"]) <= 1 for entry in objects):
        raise DataError(f"{path}: all boxes end within one pixel; expected pixels, not fractions")
    for entry in objects:
        images[entry["image_id"]]["annotations"].append(entry)
    ordered = [images[number] for number in sorted(images)]
    used = [usable_objects(image) for image in ordered]
    trainable = [i for i, some in enumerate(used) if any(min(o["bbox"][2:]) > 1 for o in some)]
    has_masks = all("segmentation" in entry for entry in objects)
    crowds = sum(entry["iscrowd"] for entry in objects)
    counts = {
        "images": len(images),
        f"objects{'' if has_masks else ' without masks'}": len(objects),
        "categories": len(categories),
        "images without objects": sum(not image["annotations"] for image in ordered),
        "crowds": crowds,
        "boxes without area": len(objects) - crowds - sum(map(len, used)),
        "categories without objects": len(categories) - len({o["category_id"] for o in objects}),
    }
    records = [json.dumps(image).encode() for image in ordered]
    sorted_categories = [categories[number] for number in sorted(categories)]
    everything = [json.dumps(sorted_categories).encode(), *records]
    return Annotations(
        sorted_categories,
        has_masks,
        ", ".join(f"{count} {what}" for what, count in counts.items() if count),
        hashlib.sha256(b"\n".join(everything)).hexdigest(),
        np.array([[image["height"], image["width"]] for image in ordered], dtype=np.int64),
        np.array(trainable, dtype=np.int64),
        np.frombuffer(b"".join(records), np.uint8),
        np.cumsum([0, *map(len, records)]),
    )


def usable_objects(image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects of an image's entry to train on, as in torchvision's reference: no crowds, and
    boxes with an area within the image (of sides of at least :data:`LEAST_SIDE`)."""

    def has_area(x: float, y: float, width: float, height: float) -> bool:
        inside = min(x + width, image["width"]) - max(x, 0) >= LEAST_SIDE
        return inside and min(y + height, image["height"]) - max(y, 0) >= LEAST_SIDE

    return [o for o in image["annotations"] if not o["iscrowd"] and has_area(*o["bbox"])]


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(
        isinstance(number, (int, float)) and math.isfinite(number) for number in value
    ) and min(value[2:]) >= 0  # fmt: skip


Expected = tuple[str, Callable[[Any], bool]]
_WHOLE: Expected = ("a whole number", lambda value: type(value) is int)
_SIDE: Expected = ("a whole number above 0", lambda value: type(value) is int and value > 0)
_TEXT: Expected = ("a string", lambda value: isinstance(value, str))
_BOX: Expected = ("four finite numbers x, y, width >= 0, height >= 0", _is_box)
# The keys of each list that are kept.
_KEYS: dict[str, dict[str, Expected]] = {
    "images": {"id": _WHOLE, "file_name": _TEXT, "height": _SIDE, "width": _SIDE},
    "categories": {"id": _WHOLE, "name": _TEXT},
    "annotations": {"id": _WHOLE, "image_id": _WHOLE, "category_id": _WHOLE, "bbox": _BOX},
}
_OPTIONAL = ("area", "iscrowd", "segmentation")


def _parse(path: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The entries of each list of the file, by id."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    lists: dict[str, dict[int, dict[str, Any]]] = {}
    for kind, keys in _KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(kind), list):
            raise DataError(f"{path}: no list '{kind}'; expected a file in COCO's format")
        lists[kind] = {}
        for number, entry in enumerate(content[kind], start=1):
            entry = entry if isinstance(entry, dict) else {}
            name = f"{path}: entry {number} of '{kind}'"
            for key, (expected, fits) in keys.items():
                if not fits(entry.get(key)):
                    raise DataError(f"{name}: {key}={entry.get(key)!r}: expected {expected}")
            if entry["id"] in lists[kind]:
                raise DataError(f"{name}: id={entry['id']}: an earlier one has it; ids must differ")
            lists[kind][entry["id"]] = {k: entry[k] for k in (*keys, *_OPTIONAL) if k in entry}
    return lists


def _object(path: Path, entry: dict[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``annotations``, checked, with its mask, if any, as compressed run lengths."""
    name = f"{path}: annotation {entry['id']}"
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        if entry[key] not in content[kind]:
            raise DataError(
                f"{name}: {key}={entry[key]}: expected an id of the {len(content[kind])} {kind} of "
                "this file"
            )
    image, (x, y, width, height) = content["images"][entry["image_id"]], entry["bbox"]
    right, bottom = image["width"] + OVERSHOOT, image["height"] + OVERSHOOT
    if min(x, y) < -OVERSHOOT or x + width > right or y + height > bottom:
        raise DataError(
            f"{name}: bbox={entry['bbox']} is outside of image {image['id']}, {image['width']} x "
            f"{image['height']} pixels; expected x, y, width and height in pixels"
        )
    segmentation = entry.pop("segmentation", None)
    try:
        entry["area"] = float(entry.get("area", width * height))
        entry.setdefault("iscrowd", 0)
        if not 0 <= entry["area"] < math.inf or entry["iscrowd"] not in (0, 1):
            raise DataError(f"area={entry['area']}, iscrowd={entry['iscrowd']!r}")
        entry["iscrowd"] = int(entry["iscrowd"])
        if segmentation:
            entry["segmentation"] = _run_lengths(segmentation, image["height"], image["width"])
    except (DataError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{name}: {error}; expected an area of at least 0, an iscrowd of 0 or 1, and as "
            "segmentation polygons of at least three points or run lengths of the image's size"
        ) from error
    return entry


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """The union of polygons, or run lengths, as compressed run lengths."""
    from pycocotools import mask

    runs = segmentation
    if isinstance(segmentation, list):
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
            raise DataError("a polygon of fewer than three points")
        if not all(map(math.isfinite, chain.from_iterable(segmentation))):
            raise DataError("a point that is not finite")
        runs = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif list(runs["size"]) != [height, width]:
        raise DataError(f"a mask of size {runs['size']} for an image of {[height, width]}")
    elif isinstance(runs["counts"], list):
        if sum(runs["counts"]) != height * width or min(runs["counts"]) < 0:
            raise DataError("run lengths that do not add up to the image's pixels")
        runs = mask.frPyObjects(runs, height, width)
    elif not isinstance(runs["counts"], (str, bytes)) or not runs["counts"]:
        raise DataError(f"run lengths {runs['counts']!r}")
    else:
        mask.decode(runs)  # raises ValueError if they do not add up
    counts = runs["counts"]
    counts = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": counts}
