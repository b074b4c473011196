"""Config sections for how a run is executed, saved and evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sn_imagenet.config.checks import require, require_at_least, require_one_of, require_seed

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
ESTIMATORS = ("mean_of_variances", "population")


@dataclass
class TrainerConfig:
    """How a run is executed. Of these only ``epochs``, ``max_steps`` and ``precision`` change the
    experiment, and are recorded as departures.

    ``replicas_per_pass``: replicas of a rank in one forward pass (None: all). Fewer save memory;
    their gradients are accumulated. ``log_every``: optimizer steps between two lines of
    ``metrics.jsonl``. ``eval_batch_size``: images per rank in one forward pass of an evaluation
    (None: chosen by device). ``deterministic``: slower deterministic kernels on CUDA, so that a
    resumed run equals an uninterrupted one bit for bit; CPU kernels always are. ``validate_every``:
    optimizer steps between two validations; None: each epoch ends with one. ``epochs`` is None if
    ``max_steps`` alone limits the training. ``graph``: run each step as one CUDA graph, with the
    same results.
    """

    epochs: int | None
    max_steps: int | None
    replicas_per_pass: int | None
    precision: str
    device: str
    log_every: int
    eval_batch_size: int | None
    deterministic: bool
    graph: bool
    validate_every: int | None = None

    def __post_init__(self) -> None:
        require(
            not (self.epochs is None and self.max_steps is None),
            "trainer.epochs=null: needs trainer.max_steps=, a number of optimizer steps",
        )
        require_at_least("trainer", self, epochs=1, max_steps=1, validate_every=1, log_every=1)
        require_at_least("trainer", self, replicas_per_pass=1, eval_batch_size=1)
        require_one_of("trainer.precision", self.precision, PRECISIONS)
        require_one_of("trainer.device", self.device, ("auto", "cpu", "cuda"))


@dataclass
class CheckpointConfig:
    """``minutes``: wall time between checkpoints within an epoch (null: none); each epoch ends with
    a checkpoint anyway.
    """

    minutes: float | None

    def __post_init__(self) -> None:
        require_at_least("checkpoint", self, minutes=0)


@dataclass
class CalibrationConfig:
    """Batch average (paper Sec. 2.1; recalibrated statistics, "PreciseBN") over ``samples`` random
    training samples (a number or ``all``), in minibatches of the run's samples per GPU.

    ``estimator``: ``mean_of_variances`` averages the variances of the minibatches, as in the paper;
    ``population`` is E[mean^2 + var] - E[mean]^2, as in the authors' code. ``every``: every
    such validation during training is repeated with the batch average (5: each fifth; None: none),
    for methods that store statistics; the weights do not depend on it.
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
        require_at_least("calibration", self, every=1)
        # Training epoch e seeds its draws with e, calibration with -1 - seed: they must differ.
        require_seed("calibration.seed", self.seed)
