"""How a run is carried out, saved and evaluated: the config's sections of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sn_imagenet.config.checks import (
    require,
    require_none_or_at_least,
    require_one_of,
    require_seed,
)

COMPILE_MODES = ("default", "reduce-overhead")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
ESTIMATORS = ("mean_of_variances", "population")


@dataclass
class TrainerConfig:
    """How a run is carried out; none of this changes the experiment but ``epochs``,
    ``max_steps`` and ``precision``, which are recorded as departures.

    ``replicas_per_pass``: how many of a rank's replicas one forward pass holds (None: all);
    fewer save memory, the gradients are accumulated. ``log_every``: optimizer steps between two
    lines of ``metrics.jsonl``. ``eval_batch_size``: images of a rank in one pass of an evaluation
    (None: as suits the device). ``deterministic``: deterministic kernels on CUDA too, slower, so
    that a resumed run is bit for bit one never disturbed; the CPU's are. ``compile``: False, or the
    mode of torch.compile in which the network's blocks are trained, which changes nothing but
    rounding, time and memory.
    """

    epochs: int
    max_steps: int | None
    replicas_per_pass: int | None
    precision: str
    device: str
    log_every: int
    eval_batch_size: int | None
    deterministic: bool
    compile: Any

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"trainer.epochs={self.epochs}: expected at least 1")
        for key in ("max_steps", "replicas_per_pass", "eval_batch_size"):
            require_none_or_at_least(f"trainer.{key}", getattr(self, key), 1)
        require(self.log_every >= 1, f"trainer.log_every={self.log_every}: expected at least 1")
        require_one_of("trainer.precision", self.precision, PRECISIONS)
        require(
            self.device in ("auto", "cpu", "cuda"),
            f"trainer.device={self.device}: expected auto, cpu or cuda",
        )
        require(
            self.compile is False or self.compile in COMPILE_MODES,
            f"trainer.compile={self.compile}: expected one of false, {', '.join(COMPILE_MODES)}",
        )
        require(
            not (self.compile and self.deterministic),
            f"trainer.compile={self.compile}: torch.compile chooses among its kernels by timing "
            "them, and trainer.deterministic=true wants the same each time; use one of the two",
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
        require_none_or_at_least("checkpoint.minutes", self.minutes, 0)
        require(
            self.on_error in ("stop", "continue"),
            f"checkpoint.on_error={self.on_error}: expected stop or continue",
        )


@dataclass
class CalibrationConfig:
    """Batch average (paper Sec. 2.1): ``samples`` random training samples (a number or ``all``),
    in minibatches of the run's own samples per GPU.

    ``estimator``: ``mean_of_variances`` averages the minibatches' variances, as the paper says;
    ``population`` is E[mean^2 + var] - E[mean]^2, as the authors' code accumulates. ``every``: the
    epochs between two calibrated validations in the training of a method that stores statistics
    (None: none); the weights do not depend on it.
    """

    samples: Any
    estimator: str
    seed: int
    every: int | None = None

    def __post_init__(self) -> None:
        is_count = isinstance(self.samples, int) and not isinstance(self.samples, bool)
        require(
            self.samples == "all" or (is_count and self.samples >= 1),
            f"calibration.samples={self.samples}: expected a number of at least 1, or 'all'",
        )
        require_one_of("calibration.estimator", self.estimator, ESTIMATORS)
        require(
            self.every is None or self.every >= 1,
            f"calibration.every={self.every}: expected null or a number of epochs",
        )
        # Training epoch e draws by e, the calibration by -1 - seed: the two must not meet.
        require_seed("calibration.seed", self.seed)
