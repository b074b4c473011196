"""In what a run departs from the paper's protocol: computed from its config, never typed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data import describe_augmentation

TABLE_2_SETTINGS = ("8x32", "8x16", "8x8", "8x4", "8x2", "1x16", "1x32", "8x1", "1x8")


@dataclass(frozen=True)
class Fact:
    """One line of the paper's protocol: what the paper says, and how to read a run's own."""

    item: str
    paper: Any
    ours: Callable[[ExperimentConfig], Any]


def _setting(config: ExperimentConfig) -> str:
    return f"{config.batch.gpus}x{config.batch.samples_per_gpu}"


# Sec. 4.1 of the paper, "Protocol", its footnote 2, Sec. 2.1, and [7] where it refers to it.
PAPER = (
    Fact("data", "imagenet", lambda c: c.data.source),
    Fact("classes", None, lambda c: c.data.classes),
    Fact("share of the training set", 1.0, lambda c: c.data.subset or 1.0),
    Fact("model", "resnet50", lambda c: c.model.name),
    Fact("model arguments", {}, lambda c: c.model.args),
    Fact("image size", 224, lambda c: c.data.image_size),
    Fact("epochs", 100, lambda c: c.trainer.epochs),
    Fact("stopped after steps", None, lambda c: c.trainer.max_steps),
    Fact("initial learning rate", 0.1, lambda c: c.initial_lr),
    Fact(
        "learning rate drops after epochs",
        [30, 60, 90],
        lambda c: [round(m * 100) for m in c.protocol.lr_milestones],
    ),
    Fact("learning rate drops by", 0.1, lambda c: c.protocol.lr_factor),
    Fact("momentum", 0.9, lambda c: c.protocol.momentum),
    Fact("weight decay", 1e-4, lambda c: c.protocol.weight_decay),
    Fact("dropout", 0.0, lambda c: c.protocol.dropout),
    Fact("last gamma of a block", 1, lambda c: 0 if c.protocol.zero_init_last_gamma else 1),
    Fact(
        "augmentation",
        "shorter side from [256, 480], 224 crop, flip, PCA lighting std 0.1",  # He et al. 2016
        lambda c: describe_augmentation(c.data, c.augment),
    ),
    Fact("pixels of resized images", "exact", lambda c: c.data.decode),
    Fact("precision", "fp32", lambda c: c.trainer.precision),
    Fact("estimator of the batch average", "mean_of_variances", lambda c: c.calibration.estimator),
)

# The methods' arguments: GN's groups are the GN paper's, BRN's bounds those of (8,4), Sec. 4.1.
NORMALISERS: dict[str, dict[str, Any]] = {
    "bn": {},
    "in": {},
    "ln": {},
    "gn": {"num_groups": 32},
    "sn": {"omega": ["in", "ln", "bn"]},
    "brn": {"r_max": 1.5, "d_max": 0.5},
}
SN_OF_ONE_SAMPLE = {"omega": ["in", "ln"]}


def departures(config: ExperimentConfig) -> list[dict[str, str]]:
    """The items of the protocol in which a run differs: [{"item", "paper", "ours"}, ...].

    Milestones are compared as fractions of the training, since ``epochs`` is an item of its own.
    """
    found = [
        {"item": fact.item, "paper": str(fact.paper), "ours": str(fact.ours(config))}
        for fact in PAPER
        if fact.ours(config) != fact.paper
    ]
    norm = config.norm
    paper = NORMALISERS.get(norm.name, norm.args)  # a method that the paper has not: its own
    if norm.name == "sn" and config.batch.samples_per_gpu == 1:
        paper = SN_OF_ONE_SAMPLE
    if norm.args != paper:
        found.append({"item": "normaliser arguments", "paper": str(paper), "ours": str(norm.args)})
    if _setting(config) not in TABLE_2_SETTINGS:
        found.append({"item": "setting", "paper": "one of Table 2's", "ours": _setting(config)})
    return found


def left_out(data_fingerprint: dict[str, Any]) -> list[dict[str, str]]:
    """That files are marked as bad, of a run's ``data_fingerprint``; [] where none is."""
    counts = {
        part: len(found["left_out"])
        for part, found in data_fingerprint.items()
        if "left_out" in found
    }
    ours = ", ".join(f"{count} of {part}" for part, count in counts.items())
    return [{"item": "files left out", "paper": "none", "ours": ours}] if counts else []
