"""``sweep.dry_run=true``: lists the runs, those to skip, and the training time of the others.

Times come from the training speeds in the files of ``sweep.measured``, which
``scripts/benchmark.py train`` wrote on any machine. Without such files they come from earlier runs
on hardware like this machine's, in the folder of the sweep or else in the committed studies, and
for ResNet-50 on ImageNet from published logs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sn_imagenet.config import CLASSIFICATION, IMAGENET_SAMPLES, ExperimentConfig
from sn_imagenet.errors import UserError
from sn_imagenet.runs import RUNNING, RunDirectory, RunError
from sn_imagenet.runs.files import RESULT
from sn_imagenet.runs.reading import read_json
from sn_imagenet.sweeps.board import RunStatus, duration, run_count, table
from sn_imagenet.sweeps.planned import COMPLETE, PlannedRun
from sn_imagenet.sweeps.pool import ELSEWHERE
from sn_imagenet.sweeps.slots import gpu_names

COMMITTED = Path(__file__).resolve().parents[2] / "results"  # of a checkout
# GPU-hours of 90 epochs of ResNet-50 with BN on ImageNet, at a large batch: docs/studies.md.
PUBLISHED = {"V100": 27, "A100": 13, "H200": 4}
# Training samples of data sets with a fixed size: official splits, and our own split of digits.
TRAIN_SAMPLES = {"imagenet": IMAGENET_SAMPLES["train"], "cifar10": 50_000, "digits": 1_397}


@dataclass(frozen=True)
class TrainingSpeed:
    """The samples/s that one process of a run trained, and the number of samples that an epoch
    draws, in all its phases."""

    # task, norm.head, data, model, image size, precision; norm, setting
    key: tuple[str, ...]
    images_per_s: float
    samples_per_epoch: float


def plan(runs: Sequence[PlannedRun], slots: int, measured: Sequence[str] = ()) -> list[str]:
    """The lines that a dry run prints.

    Args:
        measured: reports that ``scripts/benchmark.py train`` wrote.

    Raises:
        UserError: a file is not such a report.
    """
    speeds = _known_speeds(runs, measured)
    rows = []
    hours: dict[str, list[float]] = {}  # by where the estimate comes from; epochs if "published"
    for run in runs:
        state, progress = run.state()
        if state in COMPLETE:
            rows.append(RunStatus(run.name, "skip", progress, f"already {state}"))
            continue
        if state == RUNNING:
            rows.append(RunStatus(run.name, ELSEWHERE, progress))
            continue
        done = progress.epoch or 0 if progress else 0
        estimates = {name: process_hours(run.config, found, done) for name, found in speeds.items()}
        estimates["published"] = _published_epochs(run.config, done) or None
        source = next((name for name, known in estimates.items() if known is not None), "")
        estimate = estimates.get(source) or 0.0
        hours.setdefault(source, []).append(estimate)
        note = duration(3600 * estimate) if source in speeds else "not measured"
        rows.append(RunStatus(run.name, "resume" if state else "start", progress, note))
    lines = table(rows)
    if all(row.state == "skip" for row in rows):
        return [*lines, "nothing to do: every run has its result"]
    for source, parts in sorted(hours.items()):
        line, total = f"GPU-hours of {run_count(len(parts))}: ", sum(parts)
        if source == "":
            line += "not measured (no comparable run)"
        elif source == "published":
            gpus = (f"{total / 90 * each:.3g} on {gpu}" for gpu, each in PUBLISHED.items())
            line += f"{', '.join(gpus)}, by published logs of BN at a large batch; few samples per "
            line += "GPU take longer (docs/studies.md)"
        else:
            line += f"{total:.3g}, training only, at the speed {source}; "
            line += f"{total / slots:.3g} hours on {slots} slots"
        lines.append(line)
    return lines


def _known_speeds(
    runs: Sequence[PlannedRun], measured: Sequence[str]
) -> dict[str, list[TrainingSpeed]]:
    """The speeds by where they come from, the best first."""
    if measured:
        return {f"of {', '.join(measured)}": [benchmarked_speed(Path(file)) for file in measured]}
    device = runs[0].config.trainer.device
    here = measured_speeds({Path(run.config.runs_dir) for run in runs}, device)
    speeds = {"measured here": here}
    if any(process_hours(run.config, here, 0) is None for run in runs):
        committed = "of the committed studies, perhaps on a faster or slower machine"
        speeds[committed] = measured_speeds([COMMITTED], device)
    return speeds


def _published_epochs(config: ExperimentConfig, done: int) -> float:
    """The epochs left of a ResNet-50 on ImageNet; 0 for any other run."""
    described = (config.task, config.data.source, config.model.name, config.data.image_size)
    if described != (CLASSIFICATION, "imagenet", "resnet50", 224):
        return 0.0
    steps_per_epoch = IMAGENET_SAMPLES["train"] / config.batch.total
    limits = [config.trainer.epochs, (config.trainer.max_steps or 0) / steps_per_epoch]
    return max(0.0, min(limit for limit in limits if limit) - done)


def process_hours(
    config: ExperimentConfig, speeds: Sequence[TrainingSpeed], epochs_done: int
) -> float | None:
    """Hours of training left, times processes; None if nothing comparable was measured.

    Uses the speeds of the same method and setting, or else all of the same model and data. A run
    on k processes needs k GPUs for a k-th of the time, so k cancels out.
    """
    key = _comparison_key(config.to_dict())
    known = [s for s in speeds if s.key[:-2] == key[:-2]]
    closest = [s for s in known if s.key == key] or known
    if not closest:
        return None
    size: float | None = None
    if config.task == CLASSIFICATION:  # others may have several phases, or data of their own
        size = TRAIN_SAMPLES.get(config.data.source)
    size = size or closest[0].samples_per_epoch
    steps_per_epoch = int(size) // config.batch.total
    epochs, max_steps = config.trainer.epochs, config.trainer.max_steps
    limits = [epochs and steps_per_epoch * epochs, max_steps]
    steps = min(limit for limit in limits if limit) - steps_per_epoch * epochs_done
    return max(0, steps) * config.batch.total / fmean(s.images_per_s for s in closest) / 3600


def benchmarked_speed(file: Path) -> TrainingSpeed:
    """The speed of one process in a report of ``scripts/benchmark.py train``.

    Raises:
        UserError: ``file`` is not such a report.
    """
    try:
        report = read_json(file)
        samples = float(report["batch"] * report["steps_per_epoch"])
        key = _comparison_key(report["config"])
        return TrainingSpeed(key, float(report["training"]), samples)
    except (OSError, RunError, KeyError, TypeError, ValueError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"sweep.measured: {file} is not a report of scripts/benchmark.py train ({reason}); "
            "expected files written by its option --json"
        ) from error


def measured_speeds(folders: Iterable[Path], device: str) -> list[TrainingSpeed]:
    """The speeds in the results below ``folders`` measured on hardware like this machine's.

    Args:
        device: the ``trainer.device`` of the runs: auto, cpu or cuda.
    """
    gpus = gpu_names()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    speeds = []
    for file in (file for folder in folders for file in folder.rglob(RESULT)):
        try:
            result = RunDirectory(file.parent).read_result()
            if result is None:
                continue  # deleted meanwhile
            hardware, training = result["provenance"]["hardware"], result["training"]
            is_cuda = hardware["device"] == "cuda"
            same = hardware["gpu"] in gpus if is_cuda else hardware["machine"] == platform.machine()
            if same and hardware["device"] == device:
                batch = result["config"]["batch"]
                speed = float(training["images_per_s"]) / int(training["world_size"])
                samples = training["steps_per_epoch"] * batch["gpus"] * batch["samples_per_gpu"]
                key = _comparison_key(result["config"])
                speeds.append(TrainingSpeed(key, speed, float(samples)))
        except (RunError, KeyError, TypeError, ValueError, ZeroDivisionError):
            continue  # another version, malformed, or stopped before the first step
    return speeds


def _comparison_key(config: dict[str, Any]) -> tuple[str, ...]:
    data, batch, norm = config["data"], config["batch"], config["norm"]
    return (
        str((config.get("task") or {}).get("name", "classification")),
        str((norm.get("head") or {}).get("name")),
        str(data["name"]),
        str(config["model"]),
        str(data["image_size"]),
        str(config["trainer"]["precision"]),
        str(norm["name"]),
        f"{batch['gpus']}x{batch['samples_per_gpu']}",
    )
