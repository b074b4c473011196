"""Find objects in a folder of images with a trained detector, and draw them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from sn_imagenet.data.sources.images import list_images, png_targets, read_image, write_png
from sn_imagenet.distributed import choose_device
from sn_imagenet.runs import write_json
from sn_imagenet.tasks.detection.coco import open_annotations
from sn_imagenet.tasks.detection.evaluator import detections_of
from sn_imagenet.tasks.detection.images import read_image as read_described
from sn_imagenet.tasks.detection.images import target_of
from sn_imagenet.tasks.detection.saved import load_detector

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@torch.no_grad()
def detect_folder(
    run: Path,
    images: Path,
    out: Path | None = None,
    score: float = 0.5,
    annotations: Path | None = None,
) -> Iterator[Path]:
    """Find the objects in the images of ``images`` and below; yield the files as they are written.

    A picture shows the boxes, categories, scores and masks of at least ``score``.
    ``detections.json`` has all of them by file name: ``category``, ``score``, ``bbox`` (x, y,
    width, height in pixels), and ``segmentation`` (COCO's compressed run lengths).

    Args:
        out: None for the folder ``detected`` of the run, from which reports show pictures.
        annotations: of the images, in COCO's format: only these images, whose true objects are
            drawn in the folder ``content``.

    Raises:
        UserError: the run or an image cannot be used, or there are no images.
    """
    network, saved = load_detector(run)
    device, folder = choose_device("auto"), run / "detected" if out is None else out
    network.to(device)
    entries: dict[str, Any] = dict.fromkeys(list_images(images, "--images").names)
    if annotations is not None:
        truth = open_annotations(annotations, images)
        described = map(truth.image, range(len(truth)))
        entries = {entry["file_name"]: entry for entry in described}
    targets = png_targets(list(entries))
    found = {}
    for name, entry in entries.items():
        if entry is None:
            pixels = torch.from_numpy(read_image(images / name)).permute(2, 0, 1)
        else:  # as in training: annotations ignore EXIF's rotation
            pixels = read_described(entry, images)
        (output,) = network([pixels.to(device).float() / 255])
        output = {key: value.cpu() for key, value in output.items()}
        found[name] = [
            {"category": saved.classes[label - 1], **detection}
            for label, detection in detections_of(output)
        ]
        shown = output["scores"] >= score  # the first: they are sorted
        output = {key: value[shown] for key, value in output.items()}
        if "masks" in output:
            output["masks"] = output["masks"][:, 0] > 0.5
        drawn = found[name][: len(output["labels"])]
        texts = [f"{detection['category']} {detection['score']:.2f}" for detection in drawn]
        yield _draw(folder / targets[name], pixels, output, texts)
        if entry is not None:
            target = target_of(entry, truth.categories, truth.has_masks)
            true_names = [truth.names[label - 1] for label in target["labels"].tolist()]
            yield _draw(folder / "content" / targets[name], pixels, target, true_names)
    yield write_json(folder / "detections.json", found, "--out")


def _draw(path: Path, pixels: Tensor, objects: Mapping[str, Tensor], texts: Sequence[str]) -> Path:
    """Write the image uint8 [3, H, W] with ``boxes`` [m, 4] in the color of their ``labels`` [m],
    and the ``masks`` [m, H, W], if any."""
    colors: list[Any] = [COLORS[label % len(COLORS)] for label in objects["labels"].tolist()]
    if colors:
        if "masks" in objects:
            masks = objects["masks"].bool()
            pixels = draw_segmentation_masks(pixels, masks, alpha=0.4, colors=colors)
        pixels = draw_bounding_boxes(pixels, objects["boxes"], list(texts), colors)
    return write_png(path, pixels.permute(1, 2, 0).numpy())
