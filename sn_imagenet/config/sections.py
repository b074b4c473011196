"""Config sections that define the experiment: method, setting, data, model and protocol."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sn_imagenet.config.checks import (
    expand_home,
    read_architecture,
    require,
    require_at_least,
    require_one_of,
)

DECODES = ("exact", "fast")
INTERPOLATIONS = ("bilinear", "bicubic")
# Number of ImageNet-1k samples (Sec. 4.1: "1.28 million" and "50,000").
IMAGENET_SAMPLES = {"train": 1_281_167, "val": 50_000}
# The columns of Table 2 in order, as GPUs x samples per GPU.
TABLE_2_SETTINGS = ("8x32", "8x16", "8x8", "8x4", "8x2", "1x16", "1x32", "8x1", "1x8")
OWN_OPTIONS = ("lr_scale", "weight_decay", "max_norm")
STATISTICS = ("moving_average", "batch_average", "sample")


@dataclass
class NormConfig:
    """A normalization method: a layer class and its arguments.

    ``test_statistics``: which evaluation counts in Table 2. The paper uses the batch average for SN
    and the moving average for BN (Sec. 2.1, "Inference"); ``sample`` (per-sample statistics) is for
    methods that store none. ``single_sample``: what changes if a replica holds one sample:
    ``without`` has the members to remove from the lists in ``args``, and ``test_statistics``
    replaces the value above (SN has no bn at (8,1), Table 2). ``label``: the method's name in
    tables and figures, by default ``name``. ``own_parameters``: how task=classification trains the
    layers' parameters other than gamma and beta: ``lr_scale`` times the learning rate, with their
    own ``weight_decay``, gradients clipped to ``max_norm``.
    """

    name: str
    target: str
    args: dict[str, Any]
    test_statistics: str
    single_sample: dict[str, Any] = field(default_factory=dict)
    head: Any = None
    label: str | None = None
    own_parameters: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.head is not None:
            self.head = asdict(NormConfig(**self.head))
        require_one_of("norm.test_statistics", self.test_statistics, STATISTICS)
        unknown = set(self.single_sample) - {"without", "test_statistics"}
        require(
            not unknown,
            f"norm.single_sample has {sorted(unknown)}: expected 'without' and 'test_statistics'",
        )
        for key, value in self.own_parameters.items():
            require_one_of("a key of norm.own_parameters", key, OWN_OPTIONS)
            require(value >= 0, f"norm.own_parameters.{key}={value}: expected at least 0")

    def apply_single_sample(self) -> None:
        """Apply the changes in ``single_sample``."""
        for key, members in self.single_sample.get("without", {}).items():
            self.args[key] = [member for member in self.args[key] if member not in members]
        self.test_statistics = self.single_sample.get("test_statistics", self.test_statistics)


@dataclass
class SettingConfig:
    """A setting of Table 2: ``gpus`` replicas with ``samples_per_gpu`` samples each."""

    gpus: int
    samples_per_gpu: int
    name: str

    def __post_init__(self) -> None:
        require_at_least("batch", self, gpus=1, samples_per_gpu=1)

    @property
    def total(self) -> int:
        """Samples per optimizer step: gpus * samples_per_gpu."""
        return self.gpus * self.samples_per_gpu


@dataclass
class AugmentConfig:
    """Training augmentation; every random draw is a function of (seed, epoch, sample id).

    ``crop``: a crop of ``sn_imagenet/data/augment.py``, with its ``args``. ``flip``: horizontal
    flip with probability 0.5. ``lighting_std``: standard deviation of PCA lighting noise, 0 for
    none. ``operations``: further operations of that file by name, with their arguments, in order.
    """

    name: str
    crop: str
    args: dict[str, Any]
    flip: bool
    lighting_std: float
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_at_least("augment", self, lighting_std=0)


@dataclass
class DataConfig:
    """A data set. ``source`` is the module of ``sn_imagenet/data/sources`` that reads it; ``name``
    only labels the run directory. ``root``, ``train``, ``val``: folders, for sources that read any.
    ``train_annotations``, ``val_annotations``: files in COCO's format, for ``coco_format``.

    ``image_size``: side of the network's square input in pixels. ``resize_size``: shorter side
    before the center crop of validation; equal to ``image_size`` means no crop. ``interpolation``:
    of this resize, None for bilinear (random crops are always bilinear). ``mean``, ``std``: per
    channel (RGB), for values in [0, 1]. ``workers``: data loader processes per rank; results do not
    depend on it. ``decode``: ``exact`` gives the same pixels as Pillow and torchvision, ``fast``
    takes less time and differs by at most 1 of 255, 2 when it enlarges.

    For pilot studies, ``classes``: the number of classes to use, and ``subset``: the fraction of
    each class's training samples. The choice is the same for every seed and machine.
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
    train_annotations: str | None = None
    val_annotations: str | None = None

    def __post_init__(self) -> None:
        for key in ("root", "train", "val", "train_annotations", "val_annotations"):
            setattr(self, key, expand_home(getattr(self, key)))
        if self.interpolation is not None:
            require_one_of("data.interpolation", self.interpolation, INTERPOLATIONS)
        require_at_least("data", self, image_size=1, classes=2, workers=0)
        require(
            self.resize_size >= self.image_size,
            f"data.resize_size={self.resize_size}: expected at least data.image_size="
            f"{self.image_size}, since the center crop is cut from it",
        )
        require_one_of("data.decode", self.decode, DECODES)
        require(
            self.subset is None or 0 < self.subset <= 1,
            f"data.subset={self.subset}: expected null or a fraction above 0 and up to 1",
        )
        for key in ("mean", "std"):
            values = list(getattr(self, key))  # OmegaConf takes a list of any length for a tuple
            require(len(values) == 3, f"data.{key}={values}: expected 3 numbers")
        require(all(s > 0 for s in self.std), f"data.std={list(self.std)}: expected > 0")


@dataclass
class ModelConfig:
    """``name``: a mini ResNet (``resnet50_mini``), ``cell``, or any timm model with a
    ``norm_layer``. ``args.architecture`` of ``cell``: a file, which is replaced by its content.

    ``fuse_relu``: whether the normalization layers of a ResNet also compute the ReLUs and residual
    additions that follow them, which changes only rounding, time and memory.
    """

    name: str
    args: dict[str, Any]
    fuse_relu: bool

    def __post_init__(self) -> None:
        file = self.args.get("architecture")
        if isinstance(file, str):
            self.args["architecture"] = read_architecture(file)


@dataclass
class DetectionProtocolConfig:
    """What the protocols of detection add (paper Sec. 4.2).

    ``steps``: length of the training. ``warmup_steps``: in which the learning rate grows linearly
    from ``warmup_factor`` of its value. ``norm_weight_decay``: for gamma and beta.
    ``bias_weight_decay``: for the biases of convolutions and linear layers. ``bias_lr_scale``,
    ``beta_lr_scale``: factors of the learning rate of these biases, and of beta.
    ``frozen_stages``: of a pretrained ResNet: 1 is the stem, 2 also layer1.
    """

    steps: int
    warmup_steps: int
    warmup_factor: float
    norm_weight_decay: float
    bias_weight_decay: float
    bias_lr_scale: float
    beta_lr_scale: float
    frozen_stages: int

    def __post_init__(self) -> None:
        prefix = "protocol.detection"
        require_at_least(prefix, self, steps=1, warmup_steps=0, norm_weight_decay=0)
        require_at_least(prefix, self, bias_weight_decay=0, bias_lr_scale=0, beta_lr_scale=0)
        require(
            0 <= self.warmup_factor <= 1,
            f"protocol.detection.warmup_factor={self.warmup_factor}: expected 0 <= f <= 1",
        )
        require(
            0 <= self.frozen_stages <= 5,
            f"protocol.detection.frozen_stages={self.frozen_stages}: expected 0 to 5",
        )


@dataclass
class ProtocolConfig:
    """How the network is trained; ``protocol=paper`` is the paper's protocol (Sec. 4.1).

    ``lambda_weight_decay``: for SN's importance weights (None: same as all other parameters).
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
    detection: DetectionProtocolConfig | None = None

    def __post_init__(self) -> None:
        require(self.base_lr > 0, f"protocol.base_lr={self.base_lr}: expected > 0")
        least = {"lr_reference_batch": 1, "weight_decay": 0, "lambda_weight_decay": 0}
        require_at_least("protocol", self, **least)
        require(
            0 < self.lr_factor <= 1, f"protocol.lr_factor={self.lr_factor}: expected 0 < f <= 1"
        )
        require(0 <= self.dropout < 1, f"protocol.dropout={self.dropout}: expected 0 <= p < 1")
        require(0 <= self.momentum < 1, f"protocol.momentum={self.momentum}: expected 0 <= m < 1")
        milestones = list(self.lr_milestones)
        require(
            milestones == sorted(milestones) and all(0 < m < 1 for m in milestones),
            f"protocol.lr_milestones={milestones}: expected ascending fractions of the training "
            "between 0 and 1",
        )
