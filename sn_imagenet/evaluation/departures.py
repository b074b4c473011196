"""In what a run departs from the paper's protocol: computed from its config and its data, never
typed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

from hydra.utils import get_class

from sn_imagenet.config import (
    IMAGENET_SAMPLES,
    TABLE_2_SETTINGS,
    ExperimentConfig,
    ProtocolConfig,
)
from sn_imagenet.data.transforms import describe_augmentation
from sn_imagenet.norms import BatchRenorm2d
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.runs.methods import IMPORTED


@dataclass(frozen=True)
class Fact:
    """One line of the paper's protocol: what the paper says, and how to read a run's own."""

    item: str
    paper: Any
    ours: Callable[[ExperimentConfig], Any]


def _setting(config: ExperimentConfig) -> str:
    return f"{config.batch.gpus}x{config.batch.samples_per_gpu}"


def _lambda_decay(protocol: ProtocolConfig) -> str | float:
    chosen = protocol.lambda_weight_decay
    return "as of the rest" if chosen in (None, protocol.weight_decay) else chosen


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
    Fact(
        "weight decay of the importance weights",
        "as of the rest",
        lambda c: _lambda_decay(c.protocol),
    ),
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
    Fact("samples of the batch average", 50_000, lambda c: c.calibration.samples),
)

# What says nothing of weights that were not trained here.
OF_THE_TRAINING = {
    "epochs",
    "stopped after steps",
    "initial learning rate",
    "learning rate drops after epochs",
    "learning rate drops by",
    "momentum",
    "weight decay",
    "weight decay of the importance weights",
    "dropout",
    "last gamma of a block",
    "augmentation",
    "share of the training set",
}

# Of ImageNet itself; another data set is an item of its own and has a preparation of its own.
IMAGENET = (
    Fact("resize size", 256, lambda c: c.data.resize_size),
    Fact("interpolation of the resize", "bilinear", lambda c: c.data.interpolation or "bilinear"),
    Fact("mean of the images", [0.485, 0.456, 0.406], lambda c: list(c.data.mean)),
    Fact("std of the images", [0.229, 0.224, 0.225], lambda c: list(c.data.std)),
)

# The methods' arguments: GN's groups are the GN paper's, BRN's bounds those of (8,4), Sec. 4.1.
NORMALIZERS: dict[str, dict[str, Any]] = {
    "bn": {},
    "in": {},
    "ln": {},
    "gn": {"num_groups": 32},
    "sn": {"omega": ["in", "ln", "bn"]},
    "brn": {"r_max": 1.5, "d_max": 0.5},
}
# Which evaluation the paper reports (Sec. 2.1, "Inference").
TEST_STATISTICS = {"bn": "moving_average", "brn": "moving_average", "sn": "batch_average"}
SN_OF_ONE_SAMPLE = {"omega": ["in", "ln"]}


def departures(config: ExperimentConfig, fingerprint: dict[str, Any]) -> list[dict[str, str]]:
    """The items of the protocol in which a run differs: [{"item", "paper", "ours"}, ...].

    Milestones are compared as fractions of the training, since ``epochs`` is an item of its own.

    Args:
        fingerprint: of the run's data: {"train": {"samples": count, ...}, "val": ...}.
    """
    is_imagenet = config.data.source == "imagenet"
    compared = [
        (fact.item, fact.paper, fact.ours(config))
        for fact in (*PAPER, *(IMAGENET if is_imagenet else ()))
        if not (config.imported and fact.item in OF_THE_TRAINING)
    ]
    compared.append(("weights", "trained here", config.imported or "trained here"))
    compared.append(("initial weights", "random", config.init or "random"))
    if is_imagenet:
        compared += [
            (f"{part} images", samples, fingerprint[part]["samples"])
            for part, samples in IMAGENET_SAMPLES.items()
        ]
    found = [_item(*entry) for entry in compared if entry[1] != entry[2]]
    found += _of_the_normalizer(config)
    if _setting(config) not in TABLE_2_SETTINGS:
        found.append(_item("setting", "one of Table 2's", _setting(config)))
    return found


def _of_the_normalizer(config: ExperimentConfig) -> list[dict[str, str]]:
    norm, name = config.norm, config.norm.name.removesuffix(IMPORTED)
    if name not in NORMALIZERS:
        return []  # a method that the paper has not
    found = []
    own, paper = METHODS[name], NORMALIZERS[name]
    statistics = TEST_STATISTICS.get(name, "sample")
    if name == "sn" and config.batch.samples_per_gpu == 1:
        paper, statistics = SN_OF_ONE_SAMPLE, "sample"
    if get_class(norm.target) is not own:
        found.append(_item("normalizer", own.__name__, norm.target))
    if norm.args != paper:
        found.append(_item("normalizer arguments", paper, norm.args))
    if norm.test_statistics != statistics:
        found.append(_item("test statistics", statistics, norm.test_statistics))
    if name == "brn":
        steps = {
            name: norm.args.get(name, parameter.default)
            for name, parameter in signature(BatchRenorm2d).parameters.items()
            if name in ("warmup_steps", "r_steps", "d_steps")
        }
        found.append(_item("warm-up of batch renormalization", "not told", steps))
    return found


def _item(item: str, paper: Any, ours: Any) -> dict[str, str]:
    return {"item": item, "paper": str(paper), "ours": str(ours)}


def left_out(data_fingerprint: dict[str, Any]) -> list[dict[str, str]]:
    """That files are marked as bad, of a run's ``data_fingerprint``; [] where none is."""
    counts = {
        part: len(found["left_out"])
        for part, found in data_fingerprint.items()
        if "left_out" in found
    }
    ours = ", ".join(f"{count} of {part}" for part, count in counts.items())
    return [{"item": "files left out", "paper": "none", "ours": ours}] if counts else []
