"""COCO's average precision, one image at a time."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torchvision.ops import box_convert

from sn_imagenet.distributed import all_reduce_sum, broadcast_object, rank, world_size
from sn_imagenet.runs.files import csv_table
from sn_imagenet.tasks.detection.coco import Annotations
from sn_imagenet.tasks.detection.images import DetectionBatch

# COCO's first six numbers, in its order: AP over IoU 0.50:0.05:0.95, at 0.50, at 0.75, and of
# small, medium and large objects.
NUMBERS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
KINDS = {"bbox": "", "segm": "mask_"}  # COCO's kinds of AP, and the prefixes of our numbers


class CocoEvaluator:
    """Collects detections, and evaluates them with pycocotools.

    Args:
        annotations: of the validation images; position i is index i of the data set.
        masks: whether the model predicts masks, which are evaluated too.
    """

    def __init__(self, annotations: Annotations, masks: bool) -> None:
        self.annotations = annotations
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self.detections: list[dict[str, Any]] = []
        self.seen = 0  # images, of all ranks after gather
        self.per_category: dict[str, np.ndarray] = {}
        self._numbers: dict[str, Any] = {}

    def update(self, forward: Callable[..., Any], batch: DetectionBatch) -> None:
        """Add the detections in each image of a batch."""
        self.seen += len(batch)
        for index, output in zip(batch.indices, forward(list(batch.images)), strict=True):
            image_id = self.annotations.image(index)["id"]
            for label, detection in detections_of(output):
                category_id = self.annotations.categories[label - 1]["id"]
                entry = {"image_id": image_id, "category_id": category_id, **detection}
                self.detections.append(entry)

    def gather(self) -> None:
        """Bring the detections of all ranks together in the order of the images, and evaluate them
        on rank 0. Collective."""
        self.seen = int(all_reduce_sum(torch.tensor([float(self.seen)])).item())
        if world_size() > 1:
            parts: list[Any] | None = [None] * world_size() if rank() == 0 else None
            dist.gather_object(self.detections, parts)
            if parts is not None:
                self.detections = [detection for part in parts for detection in part]
        self.detections.sort(key=lambda detection: int(detection["image_id"]))  # stable
        if rank() == 0:
            for kind in self.kinds:
                numbers, by_category = average_precision(self.annotations, self.detections, kind)
                self._numbers |= {KINDS[kind] + key: value for key, value in numbers.items()}
                self.per_category[kind] = by_category
        self._numbers = broadcast_object(self._numbers)

    def finish(self) -> dict[str, Any]:
        """AP in percent: ``ap``, ``ap50``, ``ap75``, ``ap_s``, ``ap_m``, ``ap_l`` of boxes, and
        the same with ``mask_`` of masks; None where no object is of that size. ``seen``: images."""
        return {**self._numbers, "seen": self.seen}


def detections_of(output: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The detections in one image, from the output of torchvision's detector: the label (from 1),
    and as in COCO's result format ``bbox`` (x, y, width, height), ``score``, and ``segmentation``
    (compressed run lengths of the mask's pixels above 0.5) if the model predicts masks."""
    boxes = box_convert(output["boxes"].double(), "xyxy", "xywh").tolist()
    scores = output["scores"].tolist()
    found = [{"bbox": box, "score": score} for box, score in zip(boxes, scores, strict=True)]
    if "masks" in output and found:
        from pycocotools import mask

        masks = (output["masks"][:, 0] > 0.5).to("cpu", torch.uint8).numpy()
        runs = mask.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
        for detection, run in zip(found, runs, strict=True):
            detection["segmentation"] = {**run, "counts": run["counts"].decode()}
    return list(zip(output["labels"].tolist(), found, strict=True))


def average_precision(
    annotations: Annotations, detections: list[dict[str, Any]], kind: str
) -> tuple[dict[str, float | None], np.ndarray]:
    """COCO's numbers in percent, and AP, AP50 and AP75 of each category, float64 [K, 3], NaN for a
    category without objects. ``kind``: bbox or segm."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = COCO(), COCO()
        truth.dataset = {"info": {}, **annotations.to_coco()}
        truth.createIndex()
        results.dataset = {**truth.dataset, "annotations": []}
        results.createIndex()
        if detections:
            # loadRes adds keys, so pass copies. For boxes leave out the masks; loadRes would use
            # their areas.
            shape = "bbox" if kind == "bbox" else "segmentation"
            keys = ("image_id", "category_id", "score", shape)
            results = truth.loadRes([{k: d[k] for k in keys} for d in detections])
        evaluation = COCOeval(truth, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {
        name: None if value == -1 else 100 * float(value)
        for name, value in zip(NUMBERS, evaluation.stats[:6], strict=True)
    }
    # Precision by IoU, recall, category, area and number of detections; -1 without objects.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = np.where(precision == -1, np.nan, precision)
    with np.errstate(invalid="ignore"):
        columns = [precision[part].mean(axis=(0, 1)) for part in (slice(None), [0], [5])]
    return numbers, 100 * np.stack(columns, axis=1)


def category_csv(evaluators: Mapping[str, CocoEvaluator]) -> str:
    """CSV with a row per category: its name, its number of objects, and AP, AP50 and AP75 of each
    evaluation (empty without objects)."""
    annotations = next(iter(evaluators.values())).annotations
    objects = (o for o in annotations.to_coco()["annotations"] if not o["iscrowd"])
    counts = Counter(entry["category_id"] for entry in objects)
    rows: list[dict[str, object]] = []
    for index, category in enumerate(annotations.categories):
        row = {"category": category["name"], "objects": counts[category["id"]]}
        for name, evaluator in evaluators.items():
            for kind, values in evaluator.per_category.items():
                for number, value in zip(NUMBERS[:3], values[index], strict=True):
                    cell = "" if np.isnan(value) else f"{value:.4f}"
                    row[f"{name} {KINDS[kind]}{number}"] = cell
        rows.append(row)
    return csv_table(rows)
