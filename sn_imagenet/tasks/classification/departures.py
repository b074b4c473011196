"""Departures of a run from the paper's protocol, computed from its config and its data."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from hydra.utils import get_class

from sn_imagenet.config import IMAGENET_SAMPLES, TABLE_2_SETTINGS, ExperimentConfig
from sn_imagenet.data.augment import Augmentation
from sn_imagenet.norms import BatchRenorm2d
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.runs.methods import IMPORTED
from sn_imagenet.tasks.task import Fact, differences

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
    """The items in which a run differs from Sec. 4.1 of the paper, "Protocol", its footnote 2,
    Sec. 2.1, and its reference [7]: [{"item", "paper", "ours"}, ...].

    Milestones are compared as fractions of the training, since ``epochs`` is a separate item.

    Args:
        fingerprint: of the run's data, {"train": {"samples": count, ...}, "val": ...}.
    """
    data, calibration, batch = config.data, config.calibration, config.batch
    setting = f"{batch.gpus}x{batch.samples_per_gpu}"
    facts: list[Fact] = [
        ("data", "imagenet", data.source),
        ("classes", None, data.classes),
        ("model", "resnet50", config.model.name),
        ("model arguments", {}, config.model.args),
        ("image size", 224, data.image_size),
    ]
    if not config.imported:
        facts += _training_facts(config)
    facts += [
        ("pixels of resized images", "exact", data.decode),
        ("precision", "fp32", config.trainer.precision),
        ("estimator of the batch average", "mean_of_variances", calibration.estimator),
        ("samples of the batch average", 50_000, calibration.samples),
    ]
    if data.source == "imagenet":  # others have preprocessing of their own
        facts += [
            ("resize size", 256, data.resize_size),
            ("interpolation of the resize", "bilinear", data.interpolation or "bilinear"),
            ("mean of the images", [0.485, 0.456, 0.406], list(data.mean)),
            ("std of the images", [0.229, 0.224, 0.225], list(data.std)),
            *(
                (f"{part} images", samples, fingerprint[part]["samples"])
                for part, samples in IMAGENET_SAMPLES.items()
            ),
        ]
    facts += [
        ("weights", "trained here", config.imported or "trained here"),
        ("initial weights", "random", config.init or "random"),
        *_norm_facts(config),
        ("setting", setting if setting in TABLE_2_SETTINGS else "one of Table 2's", setting),
    ]
    return differences(facts)


def _training_facts(config: ExperimentConfig) -> list[Fact]:
    protocol, as_all = config.protocol, "as for all parameters"
    lambda_decay = protocol.lambda_weight_decay
    is_same = lambda_decay in (None, protocol.weight_decay)
    drops = [round(part * 100) for part in protocol.lr_milestones]
    he_et_al = "shorter side from [256, 480], 224 crop, flip, PCA lighting std 0.1"  # 2016
    return [
        ("share of the training set", 1.0, config.data.subset or 1.0),
        ("epochs", 100, config.trainer.epochs),
        ("stopped after steps", None, config.trainer.max_steps),
        ("initial learning rate", 0.1, config.initial_lr),
        ("learning rate drops after epochs", [30, 60, 90], drops),
        ("learning rate drops by", 0.1, protocol.lr_factor),
        ("momentum", 0.9, protocol.momentum),
        ("weight decay", 1e-4, protocol.weight_decay),
        ("weight decay of the importance weights", as_all, as_all if is_same else lambda_decay),
        ("dropout", 0.0, protocol.dropout),
        ("last gamma of a block", 1, 0 if protocol.zero_init_last_gamma else 1),
        ("augmentation", he_et_al, Augmentation(config.data, config.augment).description),
    ]


def _norm_facts(config: ExperimentConfig) -> list[Fact]:
    norm, name = config.norm, config.norm.name.removesuffix(IMPORTED)
    if name not in PAPER_NORM_ARGS:
        return []  # the paper does not use this method
    layer_class, args = METHODS[name], PAPER_NORM_ARGS[name]
    statistics = TEST_STATISTICS.get(name, "sample")
    if name == "sn" and config.batch.samples_per_gpu == 1:
        args, statistics = SN_SINGLE_SAMPLE_ARGS, "sample"
    papers = layer_class.__name__
    ours = papers if get_class(norm.target) is layer_class else norm.target
    facts: list[Fact] = [
        ("normalization layer", papers, ours),
        ("normalization arguments", args, norm.args),
        ("test statistics", statistics, norm.test_statistics),
    ]
    if name == "brn":
        steps = {
            name: norm.args.get(name, parameter.default)
            for name, parameter in signature(BatchRenorm2d).parameters.items()
            if name in ("warmup_steps", "r_steps", "d_steps")
        }
        facts.append(("warm-up of batch renormalization", "not stated", steps))
    return facts
