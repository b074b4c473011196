"""Find objects in a folder of images with a trained detector, and draw them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from sn_imagenet.config import from_dict
from sn_imagenet.data.decode import UndecodableError, decode
from sn_imagenet.distributed import choose_device
from sn_imagenet.errors import UserError
from sn_imagenet.models import load_weights, read_weights
from sn_imagenet.models.saved import use_statistics
from sn_imagenet.runs import RunDirectory, write_atomically, write_json
from sn_imagenet.tasks.detection.coco import Annotations, open_annotations
from sn_imagenet.tasks.detection.evaluator import detections_of
from sn_imagenet.tasks.detection.images import target_of
from sn_imagenet.tasks.detection.models import build_detector
from sn_imagenet.tasks.task import build_task

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def load_detector(run: Path, statistics: str | None = None) -> tuple[Any, tuple[str, ...]]:
    """The detector of a finished run, in evaluation mode on the CPU, and its category names.

    Args:
        statistics: of BN, ``moving_average`` or ``batch_average``; None for the run's
            ``norm.test_statistics``.

    Raises:
        UserError: there is no such run, it is not one of detection, or it lacks the statistics.
    """
    saved = read_weights(run)
    if saved.task != "detection":
        raise UserError(f"{run}: a run of task={saved.task}; expected one of task=detection")
    config = from_dict(RunDirectory(run).read_config())
    head = build_task(config).head_norm()
    network = build_detector(
        config.model, config.norm, head, config.data, config.protocol, len(saved.classes), 0
    )
    load_weights(network, saved)
    kind = statistics or config.norm.test_statistics
    use_statistics(network, RunDirectory(run), kind)
    return network.eval(), saved.classes


@torch.no_grad()
def detect_folder(
    run: Path,
    images: Path,
    out: Path,
    score: float = 0.5,
    statistics: str | None = None,
    annotations: Path | None = None,
) -> Iterator[Path]:
    """Find the objects in the images of ``images`` and below; yield the files as they are written.

    A picture shows the boxes, categories, scores and masks of at least ``score``.
    ``detections.json`` has all of them by file name: ``category``, ``score``, ``bbox`` (x, y,
    width, height in pixels), and ``segmentation`` (COCO's compressed run lengths).

    Args:
        annotations: of the images, in COCO's format: the true objects are shown at the left.

    Raises:
        UserError: the run or an image cannot be used, or there are no images.
    """
    network, names = load_detector(run, statistics)
    device = choose_device("auto")
    network.to(device)
    truth = None if annotations is None else open_annotations(annotations, images)
    files = sorted(
        path.relative_to(images) for path in images.rglob("*") if path.suffix.lower() in SUFFIXES
    )
    if not files:
        raise UserError(f"--images {images}: no images there ({', '.join(SUFFIXES)})")
    targets = {file: file.with_suffix(".png") for file in files}
    if len(set(targets.values())) < len(targets):
        raise UserError(f"--images {images}: two images differ only in their suffix; rename one")
    found = {}
    for file, target in targets.items():
        try:
            pixels = torch.from_numpy(decode((images / file).read_bytes())).permute(2, 0, 1)
        except (OSError, UndecodableError) as error:
            raise UserError(f"{images / file} cannot be read as an image ({error})") from error
        (output,) = network([pixels.to(device).float() / 255])
        output = {key: value.cpu() for key, value in output.items()}
        found[str(file)] = [_entry(detection, names) for detection in detections_of(output)]
        shown = {key: value[output["scores"] >= score] for key, value in output.items()}
        labels = [
            f"{names[label - 1]} {value:.2f}"
            for label, value in zip(shown["labels"].tolist(), shown["scores"].tolist(), strict=True)
        ]
        masks = shown["masks"][:, 0] > 0.5 if "masks" in shown else None
        picture = draw(pixels, shown, labels, masks)
        if truth is not None:
            picture = torch.cat([_true_objects(truth, str(file), pixels), picture], dim=2)
        yield _write(out / target, picture)
    yield write_json(out / "detections.json", found, "--out")


def draw(
    pixels: Tensor, objects: Mapping[str, Tensor], texts: Sequence[str], masks: Tensor | None
) -> Tensor:
    """The image uint8 [3, H, W] with ``boxes`` [m, 4] in the color of their ``labels`` [m], and
    the masks, bool [m, H, W]."""
    colors: list[Any] = [COLORS[label % len(COLORS)] for label in objects["labels"].tolist()]
    if not colors:
        return pixels
    if masks is not None:
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.4, colors=colors)
    return draw_bounding_boxes(pixels, objects["boxes"], list(texts), colors)


def _true_objects(truth: Annotations, file: str, pixels: Tensor) -> Tensor:
    (positions,) = (truth.files == file).nonzero()
    if not len(positions):
        return pixels
    target = target_of(truth, int(positions[0]), truth.has_masks)
    texts = [str(truth.names[label - 1]) for label in target["labels"].tolist()]
    return draw(pixels, target, texts, target["masks"].bool() if truth.has_masks else None)


def _entry(detection: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    entry = {"category": names[detection["label"] - 1], **detection}
    del entry["label"]
    if "segmentation" in entry:
        runs = entry["segmentation"]
        entry["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    return entry


def _write(path: Path, picture: Tensor) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return write_atomically(path, buffer.getvalue(), "--out")
