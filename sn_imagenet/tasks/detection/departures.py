"""Departures of a run from the paper's protocol for detection (Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sn_imagenet.config import ExperimentConfig

COCO_IMAGES = {"train": 118_287, "val": 5_000}


@dataclass(frozen=True)
class Setting:
    """A setting of the paper: what its model, batch and schedule are."""

    batch: str
    shorter_side: int
    learning_rate: float
    steps: int
    drops: tuple[int, ...]


SETTINGS = {
    "faster_rcnn_c4": Setting("4x3", 600, 0.01, 120_000, (80_000,)),
    "faster_rcnn_fpn": Setting("8x2", 800, 0.02, 90_000, (60_000, 80_000)),
    "mask_rcnn_fpn": Setting("8x2", 800, 0.02, 180_000, (120_000, 160_000)),
}

# Not stated in the paper: warm-up, biases, frozen stages, weight decay of lambda.
_FACTS: tuple[tuple[str, Any, Callable[[ExperimentConfig, Any], Any]], ...] = (
    ("data", "coco", lambda c, p: c.data.source),
    ("share of the training set", 1.0, lambda c, p: c.data.subset or 1.0),
    ("learning rate drops by", 0.1, lambda c, p: c.protocol.lr_factor),
    ("momentum", 0.9, lambda c, p: c.protocol.momentum),
    ("weight decay", 1e-4, lambda c, p: c.protocol.weight_decay),
    ("weight decay of gamma and beta", 0.0, lambda c, p: p.norm_weight_decay),
    ("flip", True, lambda c, p: c.augment.flip),
    ("backbone", "resnet50", lambda c, p: c.model.args.get("backbone")),
    ("precision", "fp32", lambda c, p: c.trainer.precision),
    ("epochs", None, lambda c, p: c.trainer.epochs),
)


def departures(config: ExperimentConfig, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
    """The items in which a run differs from the paper's setting with its model:
    [{"item", "paper", "ours"}, ...].

    Args:
        fingerprint: of the run's data, {"train": {"samples": count, ...}, "val": ...}.
    """
    protocol = config.protocol.detection
    items = [(item, paper, ours(config, protocol)) for item, paper, ours in _FACTS]
    setting = SETTINGS.get(config.model.name)
    if setting is None:
        items.append(("model", "one of Sec. 4.2", config.model.name))
    else:
        steps = config.trainer.max_steps or 0
        batch = f"{config.batch.gpus}x{config.batch.samples_per_gpu}"
        items += [
            ("setting", setting.batch, batch),
            ("shorter side", setting.shorter_side, config.model.args.get("min_size")),
            ("learning rate", setting.learning_rate, config.initial_lr),
            ("steps", setting.steps, steps),
            (
                "learning rate drops at steps",
                list(setting.drops),
                [round(part * steps) for part in config.protocol.lr_milestones],
            ),
        ]
    if config.data.source == "coco":
        items += [
            (f"{part} images", count, fingerprint[part]["images"])
            for part, count in COCO_IMAGES.items()
        ]
    return [
        {"item": item, "paper": str(paper), "ours": str(ours)}
        for item, paper, ours in items
        if paper != ours
    ]
