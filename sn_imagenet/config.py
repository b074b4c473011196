"""The typed configuration: what a YAML choice may say, validated when it is composed.

Hydra composes ``configs/``, whose files state the defaults; :func:`from_hydra` turns this into an
:class:`ExperimentConfig` or raises one :class:`ConfigError` that names the value, what was
expected and how to mend it. Only what a YAML choice may leave out has a default here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sn_imagenet.errors import ConfigError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
ESTIMATORS = ("mean_of_variances", "population")
DECODES = ("exact", "fast")
TRACKERS = ("tensorboard", "trackio", "none")
INTERPOLATIONS = ("bilinear", "bicubic")
STATISTICS = ("moving_average", "batch_average", "sample")

# Where, how fast and how safely a run is carried out: replicas make the results the same.
# fmt: off
NOT_THE_EXPERIMENT = frozenset({
    "run_dir", "runs_dir", "evaluate", "tracker",
    "data.root", "data.train", "data.val", "data.workers",
    "model.fuse_relu", "trainer.device", "trainer.replicas_per_pass", "trainer.log_every",
    "trainer.eval_batch_size", "trainer.deterministic", "checkpoint.minutes", "checkpoint.on_error",
    "calibration.every",
})
# fmt: on


def _at_most_cores(count: int) -> int:
    """``count`` for each process of this machine, or fewer where they have fewer cores each."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(count, cores))


OmegaConf.register_new_resolver("at_most_cores", _at_most_cores, replace=True)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_one_of(key: str, value: str, choices: Sequence[str]) -> None:
    _require(value in choices, f"{key}={value}: expected one of {', '.join(choices)}")


def _require_none_or_at_least(key: str, value: float | None, least: int) -> None:
    _require(value is None or value >= least, f"{key}={value}: expected null or at least {least}")


def _require_length(key: str, values: Sequence[float], length: int) -> None:
    # OmegaConf takes a list of any length for a tuple.
    _require(len(values) == length, f"{key}={list(values)}: expected {length} numbers")


def _require_seed(key: str, seed: int) -> None:
    # 64 bits, signed, as the random generators and the seeds of samples take them.
    _require(
        0 <= seed < 2**63, f"{key}={seed}: expected a whole number of at least 0 and below 2^63"
    )


@dataclass
class NormConfig:
    """A normalisation method: a layer class and its arguments.

    ``test_statistics`` names the evaluation that stands for the method in Table 2: the paper uses
    the batch average for SN and the moving average for BN (Sec. 2.1, "Inference");
    ``sample`` is for methods that store no statistics. ``single_sample`` says what changes where a
    replica holds one sample: ``without`` names members that leave the lists in ``args``, and
    ``test_statistics`` replaces the other (SN is without bn at (8,1), Table 2).
    """

    name: str
    target: str
    args: dict[str, Any]
    test_statistics: str
    single_sample: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_one_of("norm.test_statistics", self.test_statistics, STATISTICS)
        unknown = set(self.single_sample) - {"without", "test_statistics"}
        _require(
            not unknown,
            f"norm.single_sample has {sorted(unknown)}: expected 'without' and 'test_statistics'",
        )

    def use_single_sample(self) -> None:
        """Change what ``single_sample`` says."""
        for key, members in self.single_sample.get("without", {}).items():
            self.args[key] = [member for member in self.args[key] if member not in members]
        self.test_statistics = self.single_sample.get("test_statistics", self.test_statistics)


@dataclass
class BatchConfig:
    """A setting of Table 2: ``gpus`` replicas with ``samples_per_gpu`` samples each."""

    gpus: int
    samples_per_gpu: int
    name: str

    def __post_init__(self) -> None:
        for key in ("gpus", "samples_per_gpu"):
            value = getattr(self, key)
            _require(value >= 1, f"batch.{key}={value}: expected a whole number of at least 1")

    @property
    def total(self) -> int:
        """Samples per optimiser step: gpus * samples_per_gpu."""
        return self.gpus * self.samples_per_gpu


@dataclass
class AugmentConfig:
    """Training augmentation; every draw is a function of (seed, epoch, sample id).

    ``crop``: which of ``sn_imagenet/data/crops.py``, with its ``args``. ``flip``: horizontal,
    probability 0.5. ``lighting_std``: standard deviation of PCA lighting noise, 0 for none.
    """

    name: str
    crop: str
    args: dict[str, Any]
    flip: bool
    lighting_std: float

    def __post_init__(self) -> None:
        _require(self.lighting_std >= 0, f"augment.lighting_std={self.lighting_std}: expected >= 0")


@dataclass
class DataConfig:
    """A data set. ``source`` says how it is read, by which of ``sn_imagenet/data/sources``;
    ``name`` only labels the run directory. ``root``, ``train``, ``val``: the folders of a source
    that reads such.

    ``image_size``: side of the square that the network sees, in pixels. ``resize_size``: the
    shorter side before the validation's centre crop; equal to ``image_size`` means no crop;
    ``interpolation`` is that resize's, None bilinear (random crops always are).
    ``mean`` and ``std``: per channel (RGB), in units of [0, 1]. ``workers``: loader processes per
    rank; results do not depend on it. ``decode``: ``exact`` resizes photographs to the very pixels
    of Pillow and torchvision, ``fast`` in less time to within 1 of 255.

    For pilot studies, ``classes``: how many of the classes, and ``subset``: which share of each
    class's training samples. Each seed and each machine has the same ones.
    """

    name: str
    source: str
    image_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    workers: int
    decode: str
    root: str | None = None
    train: str | None = None
    val: str | None = None
    subset: float | None = None
    classes: int | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        if self.interpolation is not None:
            _require_one_of("data.interpolation", self.interpolation, INTERPOLATIONS)
        _require(self.image_size >= 1, f"data.image_size={self.image_size}: expected at least 1")
        _require(
            self.resize_size >= self.image_size,
            f"data.resize_size={self.resize_size}: expected at least data.image_size="
            f"{self.image_size}, since the centre crop is cut from it",
        )
        _require_one_of("data.decode", self.decode, DECODES)
        _require(
            self.subset is None or 0 < self.subset <= 1,
            f"data.subset={self.subset}: expected null or a share above 0 and up to 1",
        )
        _require_none_or_at_least("data.classes", self.classes, 2)
        _require(self.workers >= 0, f"data.workers={self.workers}: expected 0 or more")
        for key in ("mean", "std"):
            _require_length(f"data.{key}", getattr(self, key), 3)
        _require(all(s > 0 for s in self.std), f"data.std={list(self.std)}: expected > 0")


@dataclass
class ModelConfig:
    """``name``: a mini ResNet (``resnet50_mini``) or any timm model with a ``norm_layer``.

    ``fuse_relu``: whether a ResNet's normalisation layers do the ReLUs and residual additions that
    follow them, which changes nothing but rounding, time and memory.
    """

    name: str
    args: dict[str, Any]
    fuse_relu: bool


@dataclass
class ProtocolConfig:
    """How the network is trained; ``protocol=paper`` is the paper's (Sec. 4.1).

    ``lambda_weight_decay``: of SN's importance weights (None: as of every other parameter).
    """

    name: str
    base_lr: float
    lr_reference_batch: int
    lr_milestones: tuple[float, ...]
    lr_factor: float
    momentum: float
    weight_decay: float
    dropout: float
    zero_init_last_gamma: bool
    lambda_weight_decay: float | None = None

    def __post_init__(self) -> None:
        _require(self.base_lr > 0, f"protocol.base_lr={self.base_lr}: expected > 0")
        _require(
            self.lr_reference_batch >= 1,
            f"protocol.lr_reference_batch={self.lr_reference_batch}: expected at least 1",
        )
        _require(
            0 < self.lr_factor <= 1, f"protocol.lr_factor={self.lr_factor}: expected 0 < f <= 1"
        )
        _require(0 <= self.dropout < 1, f"protocol.dropout={self.dropout}: expected 0 <= p < 1")
        _require(0 <= self.momentum < 1, f"protocol.momentum={self.momentum}: expected 0 <= m < 1")
        _require(
            self.weight_decay >= 0, f"protocol.weight_decay={self.weight_decay}: expected >= 0"
        )
        _require_none_or_at_least("protocol.lambda_weight_decay", self.lambda_weight_decay, 0)
        milestones = list(self.lr_milestones)
        _require(
            milestones == sorted(milestones) and all(0 < m < 1 for m in milestones),
            f"protocol.lr_milestones={milestones}: expected ascending fractions of the training "
            "between 0 and 1",
        )


@dataclass
class TrainerConfig:
    """How a run is carried out; none of this changes the experiment but ``epochs``,
    ``max_steps`` and ``precision``, which are recorded as departures.

    ``replicas_per_pass``: how many of a rank's replicas one forward pass holds (None: all);
    fewer save memory, the gradients are accumulated. ``log_every``: optimiser steps between two
    lines of ``metrics.jsonl``. ``eval_batch_size``: images of a rank in one pass of an evaluation
    (None: as suits the device). ``deterministic``: deterministic kernels on CUDA too, slower, so
    that a resumed run is bit for bit one never disturbed; the CPU's are.
    """

    epochs: int
    max_steps: int | None
    replicas_per_pass: int | None
    precision: str
    device: str
    log_every: int
    eval_batch_size: int | None
    deterministic: bool

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"trainer.epochs={self.epochs}: expected at least 1")
        for key in ("max_steps", "replicas_per_pass", "eval_batch_size"):
            _require_none_or_at_least(f"trainer.{key}", getattr(self, key), 1)
        _require(self.log_every >= 1, f"trainer.log_every={self.log_every}: expected at least 1")
        _require_one_of("trainer.precision", self.precision, PRECISIONS)
        _require(
            self.device in ("auto", "cpu", "cuda"),
            f"trainer.device={self.device}: expected auto, cpu or cuda",
        )


@dataclass
class CheckpointConfig:
    """``minutes``: wall time between two checkpoints within an epoch (null: none within); each
    epoch ends with one anyway. ``on_error``: whether a checkpoint that cannot be written, as on a
    full disk, stops the run or not; the one before it survives.
    """

    minutes: float | None
    on_error: str

    def __post_init__(self) -> None:
        _require_none_or_at_least("checkpoint.minutes", self.minutes, 0)
        _require(
            self.on_error in ("stop", "continue"),
            f"checkpoint.on_error={self.on_error}: expected stop or continue",
        )


@dataclass
class CalibrationConfig:
    """Batch average (paper Sec. 2.1): ``samples`` random training samples (a number or ``all``),
    in minibatches of the run's own samples per GPU.

    ``estimator``: ``mean_of_variances`` averages the minibatches' variances, as the paper says;
    ``population`` is E[mean^2 + var] - E[mean]^2, as the authors' code accumulates. ``every``: the
    epochs between two calibrated validations in the training of a method that is judged by its
    batch average (None: none); the weights do not depend on it.
    """

    samples: Any
    estimator: str
    seed: int
    every: int | None = None

    def __post_init__(self) -> None:
        is_count = isinstance(self.samples, int) and not isinstance(self.samples, bool)
        _require(
            self.samples == "all" or (is_count and self.samples >= 1),
            f"calibration.samples={self.samples}: expected a number of at least 1, or 'all'",
        )
        _require_one_of("calibration.estimator", self.estimator, ESTIMATORS)
        _require(
            self.every is None or self.every >= 1,
            f"calibration.every={self.every}: expected null or a number of epochs",
        )
        # Training epoch e draws by e, the calibration by -1 - seed: the two must not meet.
        _require_seed("calibration.seed", self.seed)


@dataclass
class ExperimentConfig:
    """One cell of a table: everything that ``train.py`` needs.

    ``init``: a run directory or an export, whose weights training starts from; where its classes
    are others, with a new head. ``imported``: where weights come from that were not trained here.
    """

    norm: NormConfig
    batch: BatchConfig
    augment: AugmentConfig
    data: DataConfig
    model: ModelConfig
    protocol: ProtocolConfig
    trainer: TrainerConfig
    calibration: CalibrationConfig
    checkpoint: CheckpointConfig
    seed: int
    runs_dir: str
    run_dir: str
    evaluate: bool
    tracker: str
    init: str | None = None
    imported: str | None = None

    def __post_init__(self) -> None:
        _require_seed("seed", self.seed)
        _require_one_of("tracker", self.tracker, TRACKERS)
        if self.batch.samples_per_gpu == 1:
            self.norm.use_single_sample()

    @property
    def initial_lr(self) -> float:
        """base_lr * total batch / reference batch: 0.1 at (8,32), 0.003125 at (8,1)."""
        return self.protocol.base_lr * self.batch.total / self.protocol.lr_reference_batch

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as they go into ``config.yaml`` and ``result.json``."""
        container = OmegaConf.to_container(OmegaConf.create(asdict(self)))
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}


def from_hydra(composed: DictConfig) -> ExperimentConfig:
    """Validate a composed config.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type or range.
    """
    if OmegaConf.select(composed, "sweep.dry_run"):
        raise ConfigError("sweep.dry_run=true: works with -m hydra/launcher=local only")
    # How -m carries out its cells is no part of any of them.
    cell = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "sweep"])
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ExperimentConfig), cell)
        config = OmegaConf.to_object(merged)
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}: {reason}") from error
    assert isinstance(config, ExperimentConfig)
    return config


def from_dict(values: dict[str, Any]) -> ExperimentConfig:
    """The inverse of :meth:`ExperimentConfig.to_dict`, with the same errors as the composition."""
    # Configs of earlier versions say nothing of it.
    return from_hydra(OmegaConf.create({"tracker": "tensorboard", **values}))
