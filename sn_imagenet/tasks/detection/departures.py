"""Departures of a run from the paper's protocol for detection (Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.tasks.task import Fact, differences

COCO_IMAGES = {"train": 118_287, "val": 5_000}
# The paper's settings by their model; the minis stand for them in small.
_SIDES = ("shorter side", "longer side at most")
_ITEMS = ("setting", *_SIDES, "learning rate", "steps", "learning rate drops at steps")
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "faster_rcnn_c4": ("4x3", 600, 1000, 0.01, 120_000, [80_000]),
    "faster_rcnn_fpn": ("8x2", 800, 1333, 0.02, 90_000, [60_000, 80_000]),
    "mask_rcnn_fpn": ("8x2", 800, 1333, 0.02, 180_000, [120_000, 160_000]),
}


def departures(config: ExperimentConfig, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
    """The items in which a run differs from the paper's setting with its model:
    [{"item", "paper", "ours"}, ...]. The paper does not state warm-up, biases, frozen stages,
    proposals, sampled RoIs and weight decay of lambda. The longer side is Detectron's.

    Args:
        fingerprint: of the run's data, {"train": {"images": count, ...}, "val": ...}.
    """
    protocol, own, model = config.protocol, config.protocol.detection, config.model
    assert own is not None, "checked before"
    items: list[Fact] = [
        ("data", "coco", config.data.source),
        ("share of the training set", 1.0, config.data.subset or 1.0),
        ("learning rate drops by", 0.1, protocol.lr_factor),
        ("momentum", 0.9, protocol.momentum),
        ("weight decay", 1e-4, protocol.weight_decay),
        ("weight decay of gamma and beta", 0.0, own.norm_weight_decay),
        ("flip", True, config.augment.flip),
        ("backbone", "resnet50", model.args.get("backbone")),
        ("precision", "fp32", config.trainer.precision),
        ("epochs", None, config.trainer.epochs),
    ]
    name = model.name.removesuffix("_mini")
    items.append(("model", name if name in _SETTINGS else "one of Sec. 4.2", model.name))
    if name in _SETTINGS:
        steps, batch = config.trainer.max_steps or 0, config.batch
        drops = [round(part * steps) for part in protocol.lr_milestones]
        setting = f"{batch.gpus}x{batch.samples_per_gpu}"
        sides = (model.args.get("min_size"), model.args.get("max_size"))
        ours = (setting, *sides, config.initial_lr, steps, drops)
        items += zip(_ITEMS, _SETTINGS[name], ours, strict=True)
    if config.data.source == "coco":
        items += [(f"{p} images", n, fingerprint[p]["images"]) for p, n in COCO_IMAGES.items()]
    return differences(items)
