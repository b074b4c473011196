"""``sweep.dry_run=true``: the cells, what would be skipped, and how long the rest would take.

Times are computed from the training speed that ``scripts/benchmark.py train`` measured, on whatever
machine, in the files that ``sweep.measured`` names; without such from that of earlier runs on this
kind of machine; and from nothing else.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sn_imagenet.config import IMAGENET_SAMPLES, ExperimentConfig
from sn_imagenet.errors import UserError
from sn_imagenet.runs import RUNNING, RunDirectory, RunError
from sn_imagenet.runs.files import RESULT
from sn_imagenet.runs.reading import read_json
from sn_imagenet.sweeps.board import RunStatus, duration, table
from sn_imagenet.sweeps.planned import COMPLETE, PlannedRun
from sn_imagenet.sweeps.pool import ELSEWHERE
from sn_imagenet.sweeps.slots import gpu_names

# Training samples of the data sets whose size is fixed (their official splits; ours of digits).
TRAIN_SAMPLES = {"imagenet": IMAGENET_SAMPLES["train"], "cifar10": 50_000, "digits": 1_397}


@dataclass(frozen=True)
class TrainingSpeed:
    """What one process of one run trained per second, and on how many samples."""

    key: tuple[str, ...]  # data, model, image size, precision, torch.compile's mode; norm, setting
    images_per_s: float
    samples_per_epoch: float


def plan(runs: Sequence[PlannedRun], slots: int, measured: Sequence[str] = ()) -> list[str]:
    """The lines of a dry run.

    Args:
        measured: files of ``scripts/benchmark.py train``.

    Raises:
        UserError: one of them is not.
    """
    if measured:
        speeds = [benchmarked_speed(Path(file)) for file in measured]
        source = f"of {', '.join(measured)}"
    else:
        device = runs[0].config.trainer.device
        speeds = measured_speeds({Path(run.config.runs_dir) for run in runs}, device)
        source = "measured here"
    rows, hours, unknown, left = [], 0.0, 0, 0
    for run in runs:
        state, progress = run.state()
        if state in COMPLETE:
            rows.append(RunStatus(run.name, "skip", progress, f"{state} before"))
            continue
        left += 1
        if state == RUNNING:
            rows.append(RunStatus(run.name, ELSEWHERE, progress))
            continue
        estimate = process_hours(run.config, speeds, progress.epoch or 0 if progress else 0)
        if estimate is None:
            unknown += 1
            note = "not measured"
        else:
            hours += estimate
            note = duration(3600 * estimate)
        rows.append(RunStatus(run.name, "resume" if state else "start", progress, note))
    lines = table(rows)
    if not left:
        return [*lines, "nothing to do: every cell has its result"]
    if unknown:
        lines.append(f"GPU-hours of {unknown} cells: not measured (no run of this model and data)")
    if unknown < left:
        lines.append(
            f"GPU-hours of {left - unknown} cells: {hours:.3g}, training alone, at the images/s "
            f"{source}; {hours / slots:.3g} hours on {slots} slots"
        )
    return lines


def process_hours(
    config: ExperimentConfig, speeds: Sequence[TrainingSpeed], epochs_done: int
) -> float | None:
    """Hours of training left, times processes; None if nothing comparable was measured.

    A run of the same normalizer and setting counts alone; without one, all of the same model and
    data do. A cell on k processes needs k GPUs for a k-th of the time, so k drops out.
    """
    wanted = _key(config.to_dict())
    ours = [s for s in speeds if s.key[:-2] == wanted[:-2]]
    same = [s for s in ours if s.key == wanted] or ours
    size = TRAIN_SAMPLES.get(config.data.source) or (ours[0].samples_per_epoch if ours else None)
    if not same or size is None:
        return None
    steps_per_epoch = int(size) // config.batch.total
    steps = steps_per_epoch * config.trainer.epochs
    steps = min(steps, config.trainer.max_steps or steps) - steps_per_epoch * epochs_done
    return max(0, steps) * config.batch.total / fmean(s.images_per_s for s in same) / 3600


def benchmarked_speed(file: Path) -> TrainingSpeed:
    """What ``scripts/benchmark.py train`` measured in one process.

    Raises:
        UserError: ``file`` is no report of it.
    """
    try:
        report = read_json(file)
        batch = report["batch"]
        return TrainingSpeed(
            _key(report["config"]),
            float(report["training"]),
            float(report["steps_per_epoch"] * batch),
        )
    except (OSError, RunError, KeyError, TypeError, ValueError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"sweep.measured: {file} is no report of scripts/benchmark.py train ({reason}); "
            "expected files that its --json wrote"
        ) from error


def measured_speeds(folders: Iterable[Path], device: str) -> list[TrainingSpeed]:
    """What the results below ``folders`` measured on hardware like this machine's.

    Args:
        device: of the runs: auto, cpu or cuda.
    """
    gpus = gpu_names()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    found = []
    for folder in folders:
        for directory, _, files in os.walk(folder):
            if RESULT not in files:
                continue
            try:
                result = RunDirectory(Path(directory)).read_result()
                if result is None:
                    continue  # removed meanwhile
                hardware = result["provenance"]["hardware"]
                if hardware["device"] == device and _is_like_this_machine(hardware, gpus):
                    found.append(_speed(result))
            except (RunError, KeyError, TypeError, ValueError, ZeroDivisionError):
                continue  # being written, of another version, or stopped before its first step
    return found


def _speed(result: dict[str, Any]) -> TrainingSpeed:
    training, config = result["training"], result["config"]
    batch = config["batch"]["gpus"] * config["batch"]["samples_per_gpu"]
    return TrainingSpeed(
        _key(config),
        float(training["images_per_s"]) / int(training["world_size"]),
        float(training["steps_per_epoch"]) * batch,
    )


def _key(config: dict[str, Any]) -> tuple[str, ...]:
    data, batch = config["data"], config["batch"]
    return (
        str(data["name"]),
        str(config["model"]),
        str(data["image_size"]),
        str(config["trainer"]["precision"]),
        str(config["trainer"].get("compile", False)),  # configs of before say nothing of it
        str(config["norm"]["name"]),
        f"{batch['gpus']}x{batch['samples_per_gpu']}",
    )


def _is_like_this_machine(hardware: dict[str, Any], gpus: set[str]) -> bool:
    if hardware["device"] == "cuda":
        return hardware["gpu"] in gpus
    return bool(hardware["machine"] == platform.machine())
