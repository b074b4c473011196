"""Small data sets in COCO's format, drawn for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDES = ((48, 64), (64, 48), (40, 72), (56, 56))  # height, width


def drawn_annotations(count: int, seed: int) -> dict[str, Any]:
    """``count`` images with one to three rectangles each, and one crowd, in two categories."""
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    for number in range(count):
        height, width = SIDES[number % len(SIDES)]
        images.append({"id": 10 + number, "file_name": f"{number}.png", "height": height,
                       "width": width})  # fmt: skip
        for _ in range(1 + number % 3):
            w, h = generator.integers(12, 30, 2).tolist()
            x, y = int(generator.integers(0, width - w)), int(generator.integers(0, height - h))
            annotations.append({
                "id": len(annotations) + 1, "image_id": 10 + number,
                "category_id": 3 + 4 * int(generator.integers(2)), "bbox": [x, y, w, h],
                "area": w * h, "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            })  # fmt: skip
    height, width = images[0]["height"], images[0]["width"]
    annotations.append({
        "id": len(annotations) + 1, "image_id": 10, "category_id": 7, "iscrowd": 1,
        "bbox": [0, 0, width, height], "area": width * height,
        "segmentation": {"size": [height, width], "counts": [0, height * width]},
    })  # fmt: skip
    categories = [{"id": 7, "name": "round"}, {"id": 3, "name": "square"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def draw(folder: Path, content: dict[str, Any]) -> None:
    """Write the images: grey noise, with the objects in the color of their category."""
    folder.mkdir(parents=True)
    for image in content["images"]:
        generator = np.random.default_rng(image["id"])
        pixels = generator.integers(90, 130, (image["height"], image["width"], 3)).astype(np.uint8)
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"] and not entry["iscrowd"]:
                x, y, w, h = entry["bbox"]
                pixels[y : y + h, x : x + w, entry["category_id"] % 3] = 250
        Image.fromarray(pixels).save(folder / image["file_name"])


def draw_data(root: Path) -> tuple[str, ...]:
    """Write train/ (12 images) and val/ (4 images) with train.json and val.json below ``root``.
    Returns the words of a command line that choose them."""
    for part, count in (("train", 12), ("val", 4)):
        content = drawn_annotations(count, seed=count)
        draw(root / part, content)
        (root / f"{part}.json").write_text(json.dumps(content))
    parts = [f"data.{part}={root / part}" for part in ("train", "val")]
    files = [f"data.{part}_annotations={root / part}.json" for part in ("train", "val")]
    return ("data=coco_format", *parts, *files, "data.workers=0")
