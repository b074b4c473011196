"""COCO's average precision, one image at a time."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch.distributed as dist

from sn_imagenet.distributed import broadcast_object, rank, world_size
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
        self.per_category: dict[str, np.ndarray] = {}
        self._numbers: dict[str, Any] = {}

    def update(self, forward: Callable[..., Any], batch: DetectionBatch) -> None:
        """Add the detections in each image of a batch."""
        for index, output in zip(batch.indices, forward(list(batch.images)), strict=True):
            image_id = int(self.annotations.image_ids[index])
            found = detections_of(output)
            for detection in found:
                label = detection.pop("label")
                category = int(self.annotations.category_ids[label - 1])
                self.detections.append({"image_id": image_id, "category_id": category, **detection})

    def gather(self) -> None:
        """Bring the detections of all ranks together in the order of the images, and evaluate them
        on rank 0. Collective."""
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
        return {**self._numbers, "seen": len(self.annotations)}


def detections_of(output: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The detections in one image, from the output of torchvision's detector: ``label`` (from 1),
    ``bbox`` (x, y, width, height), ``score``, and ``segmentation`` (compressed run lengths of the
    mask's pixels above 0.5) if the model predicts masks."""
    boxes = output["boxes"].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    found = [
        {"label": label, "bbox": box, "score": score}
        for label, box, score in zip(
            output["labels"].tolist(), boxes.tolist(), output["scores"].tolist(), strict=True
        )
    ]
    if "masks" in output:
        from pycocotools import mask

        masks = (output["masks"][:, 0] > 0.5).cpu().numpy().astype(np.uint8)
        runs = mask.encode(np.asfortranarray(masks.transpose(1, 2, 0))) if len(masks) else []
        for detection, run in zip(found, runs, strict=True):
            detection["segmentation"] = run
    return found


def average_precision(
    annotations: Annotations, detections: list[dict[str, Any]], kind: str
) -> tuple[dict[str, float | None], np.ndarray]:
    """COCO's numbers in percent, and AP, AP50 and AP75 of each category, float64 [K, 3], NaN for a
    category without objects. ``kind``: bbox or segm."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations.to_coco()
        truth.createIndex()
        if detections:
            # loadRes adds keys, so pass copies. For boxes leave out the masks; loadRes would use
            # their areas.
            keys = {
                "image_id",
                "category_id",
                "score",
                "bbox" if kind == "bbox" else "segmentation",
            }
            results = truth.loadRes([{k: d[k] for k in keys} for d in detections])
        else:
            results = COCO()
            results.dataset = {**truth.dataset, "annotations": []}
            results.createIndex()
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


def category_csv(names: list[str], evaluators: Mapping[str, CocoEvaluator]) -> bytes:
    """CSV with a row per category: its name, its number of objects, and AP, AP50 and AP75 of each
    evaluation (empty without objects)."""
    table, columns = io.StringIO(), []
    for name, evaluator in evaluators.items():
        for kind, values in evaluator.per_category.items():
            for number, column in zip(NUMBERS, values.T, strict=False):
                columns.append((f"{name} {KINDS[kind]}{number}", column))
    annotations = next(iter(evaluators.values())).annotations
    counts = np.bincount(annotations.labels[~annotations.crowds], minlength=len(names))
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["category", "objects", *(title for title, _ in columns)])
    for index, name in enumerate(names):
        cells = ("" if np.isnan(c[index]) else f"{c[index]:.4f}" for _, c in columns)
        writer.writerow([name, int(counts[index]), *cells])
    return table.getvalue().encode()


def detections_json(detections: list[dict[str, Any]]) -> bytes:
    """The detections in COCO's result format."""

    def plain(run: Mapping[str, Any]) -> dict[str, Any]:
        return {"size": list(run["size"]), "counts": run["counts"].decode()}

    entries = [
        {key: plain(value) if key == "segmentation" else value for key, value in entry.items()}
        for entry in detections
    ]
    return json.dumps(entries).encode()
