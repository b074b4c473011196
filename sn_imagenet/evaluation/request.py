"""What a call of ``evaluate.py`` asks for beside the run's own config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sn_imagenet.config import ESTIMATORS, CalibrationConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation.calibration import Samples
from sn_imagenet.runs.files import FINAL


@dataclass(frozen=True)
class EvaluationRequest:
    """What one evaluation is to do: ``values`` replace the run's own, as nested dicts, where they
    are not None; ``samples`` of the batch averages and how many ``draws`` of them; ``checkpoint``,
    a file in the run's directory or a path; ``per_class`` and ``save_logits``, files to write in
    the run's directory.
    """

    values: dict[str, Any]
    samples: tuple[Samples, ...] | None = None
    draws: int = 1
    checkpoint: str = FINAL
    per_class: str | None = None
    save_logits: str | None = None

    @classmethod
    def from_config(cls, composed: dict[str, Any]) -> EvaluationRequest:
        """From the values of ``configs/evaluation/evaluate.yaml``.

        Raises:
            ConfigError: one of them is none that can be done.
        """
        calibration = dict(composed["calibration"])
        draws, samples = calibration.pop("draws"), calibration.pop("samples")
        if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
            raise ConfigError(f"calibration.draws={draws}: expected a number of at least 1")
        several = tuple(samples) if isinstance(samples, list) else (samples,)
        if samples is not None:
            if not several:
                raise ConfigError("calibration.samples=[]: expected at least one number, or all")
            for one in several:
                CalibrationConfig(samples=one, estimator=ESTIMATORS[0], seed=0)
        calibration["samples"] = several[0]
        for key, suffix in (("per_class", ".csv"), ("save_logits", ".npz")):
            name = composed[key]
            if name is not None and (Path(name).name != name or Path(name).suffix != suffix):
                raise ConfigError(
                    f"{key}={name}: expected the name of a file that ends with {suffix}; it is "
                    "written in the run's directory"
                )
        own = {key: value for key, value in composed.items() if key in ("data", "trainer")}
        return cls(
            values={**own, "calibration": calibration},
            samples=None if samples is None else several,
            draws=draws,
            checkpoint=composed["checkpoint"] or FINAL,
            per_class=composed["per_class"],
            save_logits=composed["save_logits"],
        )
