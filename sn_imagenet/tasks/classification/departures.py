"""Departures of a run from the paper's protocol, computed from its config and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from sn_imagenet.data.augment import Augmentation
from sn_imagenet.norms import BatchRenorm2d
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.runs.methods import IMPORTED


@dataclass(frozen=True)
class Fact:
    """An item of the paper's protocol: the paper's value, and how to read a run's value."""

    item: str
    paper: Any
    ours: Callable[[ExperimentConfig], Any]


SAME_DECAY = "as for all parameters"


def _setting(config: ExperimentConfig) -> str:
    return f"{config.batch.gpus}x{config.batch.samples_per_gpu}"


def _lambda_decay(protocol: ProtocolConfig) -> str | float:
    decay = protocol.lambda_weight_decay
    return SAME_DECAY if decay in (None, protocol.weight_decay) else decay


# From Sec. 4.1 of the paper, "Protocol", its footnote 2, Sec. 2.1, and its reference [7].
PAPER_FACTS = (
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
        SAME_DECAY,
        lambda c: _lambda_decay(c.protocol),
    ),
    Fact("dropout", 0.0, lambda c: c.protocol.dropout),
    Fact("last gamma of a block", 1, lambda c: 0 if c.protocol.zero_init_last_gamma else 1),
    Fact(
        "augmentation",
        "shorter side from [256, 480], 224 crop, flip, PCA lighting std 0.1",  # He et al. 2016
        lambda c: Augmentation(c.data, c.augment).description,
    ),
    Fact("pixels of resized images", "exact", lambda c: c.data.decode),
    Fact("precision", "fp32", lambda c: c.trainer.precision),
    Fact("estimator of the batch average", "mean_of_variances", lambda c: c.calibration.estimator),
    Fact("samples of the batch average", 50_000, lambda c: c.calibration.samples),
)

# Not reported for imported weights, which were trained elsewhere.
TRAINING_ITEMS = {
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

# For ImageNet only: another data set is itself a departure and has its own preprocessing.
IMAGENET_FACTS = (
    Fact("resize size", 256, lambda c: c.data.resize_size),
    Fact("interpolation of the resize", "bilinear", lambda c: c.data.interpolation or "bilinear"),
    Fact("mean of the images", [0.485, 0.456, 0.406], lambda c: list(c.data.mean)),
    Fact("std of the images", [0.229, 0.224, 0.225], lambda c: list(c.data.std)),
)

# GN's number of groups is from the GN paper; BRN's bounds are for (8,4), Sec. 4.1.
PAPER_NORM_ARGS: dict[str, dict[str, Any]] = {
    "bn": {},
    "in": {},
    "ln": {},
    "gn": {"num_groups": 32},
    "sn": {"omega": ["in", "ln", "bn"]},
    "brn": {"r_max": 1.5, "d_max": 0.5},
}
# Which evaluation the paper reports (Sec. 2.1, "Inference").
TEST_STATISTICS = {"bn": "moving_average", "brn": "moving_average", "sn": "batch_average"}
SN_SINGLE_SAMPLE_ARGS = {"omega": ["in", "ln"]}


def departures(config: ExperimentConfig, fingerprint: Mapping[str, Any]) -> list[dict[str, str]]:
    """The protocol items in which a run differs from the paper: [{"item", "paper", "ours"}, ...].

    Milestones are compared as fractions of the training, since ``epochs`` is a separate item.

    Args:
        fingerprint: of the run's data, {"train": {"samples": count, ...}, "val": ...}.
    """
    is_imagenet = config.data.source == "imagenet"
    compared = [
        (fact.item, fact.paper, fact.ours(config))
        for fact in (*PAPER_FACTS, *(IMAGENET_FACTS if is_imagenet else ()))
        if not (config.imported and fact.item in TRAINING_ITEMS)
    ]
    compared.append(("weights", "trained here", config.imported or "trained here"))
    compared.append(("initial weights", "random", config.init or "random"))
    if is_imagenet:
        compared += [
            (f"{part} images", samples, fingerprint[part]["samples"])
            for part, samples in IMAGENET_SAMPLES.items()
        ]
    differing = [_departure(*entry) for entry in compared if entry[1] != entry[2]]
    differing += _norm_departures(config)
    if _setting(config) not in TABLE_2_SETTINGS:
        differing.append(_departure("setting", "one of Table 2's", _setting(config)))
    return differing


def _norm_departures(config: ExperimentConfig) -> list[dict[str, str]]:
    norm, name = config.norm, config.norm.name.removesuffix(IMPORTED)
    if name not in PAPER_NORM_ARGS:
        return []  # the paper does not use this method
    differing = []
    layer_class, args = METHODS[name], PAPER_NORM_ARGS[name]
    statistics = TEST_STATISTICS.get(name, "sample")
    if name == "sn" and config.batch.samples_per_gpu == 1:
        args, statistics = SN_SINGLE_SAMPLE_ARGS, "sample"
    if get_class(norm.target) is not layer_class:
        differing.append(_departure("normalization layer", layer_class.__name__, norm.target))
    if norm.args != args:
        differing.append(_departure("normalization arguments", args, norm.args))
    if norm.test_statistics != statistics:
        differing.append(_departure("test statistics", statistics, norm.test_statistics))
    if name == "brn":
        steps = {
            name: norm.args.get(name, parameter.default)
            for name, parameter in signature(BatchRenorm2d).parameters.items()
            if name in ("warmup_steps", "r_steps", "d_steps")
        }
        differing.append(_departure("warm-up of batch renormalization", "not stated", steps))
    return differing


def _departure(item: str, paper: Any, ours: Any) -> dict[str, str]:
    return {"item": item, "paper": str(paper), "ours": str(ours)}
