"""COCO's numbers, against pycocotools on the official files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sn_imagenet.tasks.detection.coco import Annotations, open_annotations, read_annotations
from sn_imagenet.tasks.detection.evaluator import NUMBERS, CocoEvaluator, category_csv
from sn_imagenet.tasks.detection.images import DetectionBatch, target_of


def made_up(annotations: Annotations, position: int, masks: bool) -> dict[str, torch.Tensor]:
    """What a fair detector might find in an image: most objects, moved a little, and some that are
    not there."""
    generator = np.random.default_rng(position)
    target = target_of(annotations.image(position), annotations.categories, masks)
    kept = torch.from_numpy(generator.random(len(target["labels"])) < 0.8)
    boxes, labels = target["boxes"][kept], target["labels"][kept]
    wrong = torch.from_numpy(generator.random(len(labels)) < 0.2)
    labels[wrong] = int(generator.integers(1, len(annotations.names) + 1))
    output = {
        "boxes": boxes + torch.from_numpy(generator.normal(0, 2, boxes.shape)).float(),
        "labels": labels,
        "scores": torch.from_numpy(generator.random(len(labels))).float(),
    }
    if masks:
        shapes = [0.9 * shape.roll(generator.integers(-2, 3, 2).tolist(), (0, 1))
                  for shape in target["masks"][kept]]  # fmt: skip
        output["masks"] = torch.stack(shapes)[:, None] if shapes else target["masks"][:, None]
    return output


def evaluated(annotations: Annotations, masks: bool, keep: bool = True) -> CocoEvaluator:
    evaluator = CocoEvaluator(annotations, masks)
    for position in range(len(annotations)):
        output = made_up(annotations, position, masks)
        if not keep:
            output = {key: value[:0] for key, value in output.items()}
        image = torch.zeros(3, 4, 4)
        evaluator.update(lambda images, o=output: [o], DetectionBatch((image,), (), (position,)))
    evaluator.gather()
    return evaluator


def reference(path: Path, detections: Any, kind: str) -> COCOeval:
    truth = COCO(str(path))
    unused = "bbox" if kind == "segm" else "segmentation"  # else the areas are those of the boxes
    results = truth.loadRes([{k: v for k, v in d.items() if k != unused} for d in detections])
    evaluation = COCOeval(truth, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(
    ("name", "part"), [("coco_small", "val2017"), ("nuclei", "val"), ("blood_cells", "val")]
)
def test_numbers_are_those_of_pycocotools(
    real: Callable[[str], Path], name: str, part: str
) -> None:
    root = real(name)
    path = root / "annotations" / f"instances_{part}.json"
    annotations = open_annotations(path, root / part)
    evaluator = evaluated(annotations, masks=annotations.has_masks)
    numbers = evaluator.finish()
    detections = json.loads(json.dumps(evaluator.detections))
    assert numbers["seen"] == len(annotations)
    for kind, prefix in (("bbox", ""), ("segm", "mask_"))[: 1 + annotations.has_masks]:
        evaluation = reference(path, detections, kind)
        for key, expected in zip(NUMBERS, evaluation.stats, strict=False):
            found = numbers[prefix + key]
            assert found == (None if expected == -1 else 100 * expected), prefix + key
        assert 5 < numbers[prefix + "ap"] < 95
        rows = list(csv.DictReader(io.StringIO(category_csv({"sample": evaluator}))))
        assert len(rows) == len(annotations.names)
        column = f"sample {prefix}ap"
        values = [float(row[column]) for row in rows if row[column]]
        assert np.mean(values) == pytest.approx(numbers[prefix + "ap"], abs=1e-3)
        crowdless = sum(int(row["objects"]) for row in rows)
        assert crowdless == sum(not e["iscrowd"] for e in annotations.to_coco()["annotations"])
        precision = evaluation.eval["precision"][5, :, 0, 0, -1]
        if precision[0] != -1:
            assert float(rows[0][f"sample {prefix}ap75"]) == pytest.approx(
                100 * precision.mean(), abs=1e-4
            )
    if name == "nuclei":  # every object is small in COCO's sense
        assert numbers["ap_m"] is None and numbers["mask_ap_l"] is None


def test_no_detection_is_zero(drawn: Path) -> None:
    annotations = open_annotations(drawn / "val.json", drawn / "val")
    numbers = evaluated(annotations, masks=True, keep=False).finish()
    assert numbers["ap"] == numbers["mask_ap"] == numbers["ap_s"] == 0
    assert numbers["ap_l"] is None
    json.dumps(numbers)


@pytest.mark.parametrize("first_id", [0, 1])  # pycocotools reads an id of 0 as "not found"
def test_perfect_detections_are_a_hundred(drawn: Path, tmp_path: Path, first_id: int) -> None:
    content = json.loads((drawn / "val.json").read_text())
    for number, entry in enumerate(content["annotations"], start=first_id):
        entry["id"] = number
    (tmp_path / "val.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "val.json", drawn / "val")
    evaluator = CocoEvaluator(annotations, masks=False)
    for position in reversed(range(len(annotations))):
        output = target_of(annotations.image(position), annotations.categories, False)
        output["scores"] = torch.ones(len(output["labels"]))
        batch = DetectionBatch((torch.zeros(3, 4, 4),), (), (position,))
        evaluator.update(lambda images, o=output: [o], batch)
    evaluator.gather()
    numbers = evaluator.finish()
    assert numbers["ap"] == numbers["ap50"] == pytest.approx(100)
    order = [detection["image_id"] for detection in evaluator.detections]
    assert order == sorted(order)
