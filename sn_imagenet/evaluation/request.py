"""Options of ``evaluate.py`` that extend or override a run's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sn_imagenet.config import ESTIMATORS, CalibrationConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation.calibration import Samples
from sn_imagenet.runs.directory import RUN_FILES
from sn_imagenet.runs.evaluations import EVALNORM
from sn_imagenet.runs.files import FINAL

# The artifacts with an option of their own, and the endings of their files.
SUFFIXES = {"per_class": ".csv", "save_logits": ".npz"}


@dataclass(frozen=True)
class EvaluationRequest:
    """Options of an evaluation. ``values``: nested dict that overrides the run's config, except
    None. ``samples``: sample counts of the batch averages. ``draws``: how often to draw the
    samples. ``checkpoint``: a file in the run directory, or a path. ``artifacts``: names of
    files to write in the run directory, by kind. ``statistics``: ``evalnorm``, or None for the
    moving and the batch average.
    """

    values: dict[str, Any]
    samples: tuple[Samples, ...] | None = None
    draws: int = 1
    checkpoint: str = FINAL
    artifacts: Mapping[str, str] = field(default_factory=dict)
    statistics: str | None = None

    @classmethod
    def from_config(cls, composed: dict[str, Any]) -> EvaluationRequest:
        """From the values of ``configs/evaluation/evaluate.yaml``.

        Raises:
            ConfigError: a value is invalid.
        """
        calibration = dict(composed["calibration"])
        draws, samples = calibration.pop("draws"), calibration.pop("samples")
        if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
            raise ConfigError(f"calibration.draws={draws}: expected a number of at least 1")
        counts = tuple(samples) if isinstance(samples, list) else (samples,)
        if samples is not None:
            if not counts:
                raise ConfigError("calibration.samples=[]: expected at least one number, or all")
            for count in counts:
                CalibrationConfig(samples=count, estimator=ESTIMATORS[0], seed=0)
        calibration["samples"] = counts[0]
        if composed["statistics"] not in (None, EVALNORM):
            raise ConfigError(f"statistics={composed['statistics']}: expected null or {EVALNORM}")
        artifacts = dict(composed["artifacts"])
        artifacts |= {kind: composed[kind] for kind in SUFFIXES if composed[kind] is not None}
        for kind, name in artifacts.items():
            file, suffix = Path(str(name)), SUFFIXES.get(kind, "")
            is_name = file.name == name and bool(file.suffix) and name.endswith(suffix)
            if not is_name or name in RUN_FILES:
                key = kind if kind in SUFFIXES else f"artifacts.{kind}"
                raise ConfigError(
                    f"{key}={name}: expected a file name ending in {suffix or '.csv or the like'}, "
                    "without a folder; it is written in the run's directory, beside its own files"
                )
        overrides = {key: value for key, value in composed.items() if key in ("data", "trainer")}
        return cls(
            values={**overrides, "calibration": calibration},
            samples=None if samples is None else counts,
            draws=draws,
            checkpoint=composed["checkpoint"] or FINAL,
            artifacts=artifacts,
            statistics=composed["statistics"],
        )
