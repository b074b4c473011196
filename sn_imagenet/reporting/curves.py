"""The metrics of a run by epoch, from its ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from sn_imagenet.errors import UserError
from sn_imagenet.runs import Run, stage_of
from sn_imagenet.runs.reading import mapping, number, open_to_read, parse_json

EPOCH_CHOICES = ("final", "best", "median5")
KIND_SYMBOLS = {"mean": "μ", "variance": "σ"}  # kinds of importance weights


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run, ``number`` counted from 1; accuracies in percent.

    ``train``: top-1 on the augmented training samples of the epoch, None where no row records it.
    ``validation``: statistics -> top-1. ``weights``: layer -> kind (mean, variance) -> member of
    Omega -> importance weight, empty for methods other than SN.
    """

    number: int
    train: float | None
    validation: dict[str, float]
    weights: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def read_epochs(run: Run) -> list[Epoch]:
    """The epochs that ``run`` has completed, in order; empty without a ``metrics.jsonl``.

    The last line may be incomplete, because a run may be writing it.

    Raises:
        UserError: any other line is malformed; names the file and the line.
    """
    file = run.path / "metrics.jsonl"
    try:
        with open_to_read(file) as opened:
            *lines, _unfinished = opened.read().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    correct: defaultdict[int, float] = defaultdict(float)
    steps: defaultdict[int, int] = defaultdict(int)
    epochs: dict[int, Epoch] = {}
    for i, line in enumerate(lines, start=1):
        try:
            row = parse_json(line, finite=False)
            epoch = int(row["epoch"])
            if row["kind"] == "train":
                steps[epoch] += int(row["steps"])
                correct[epoch] += int(row["steps"]) * number(row["top1"])
            elif row["kind"] == "epoch":
                train = correct[epoch] / steps[epoch] if steps[epoch] else None
                epochs[epoch] = Epoch(epoch, train, _validation(row), _weights(row))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{file}, line {i}: not a row of a run's metrics ({error!r}); no curve of "
                "this run is drawn"
            ) from error
    return [epochs[epoch] for epoch in sorted(epochs)]


def _validation(row: dict[str, Any]) -> dict[str, float]:
    """Statistics -> top-1: the statistics of every epoch, and the batch average if calibrated."""
    counted = {str(row["val"]["statistics"]): row["val"]}
    if row.get("calibrated"):
        counted["batch_average"] = row["calibrated"]
    return {name: _finite(values["top1"]) for name, values in counted.items()}


def _weights(row: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        str(layer): {
            kind: {str(m): _finite(w) for m, w in kinds[kind].items()} for kind in KIND_SYMBOLS
        }
        for layer, kinds in mapping(row.get("importance_weights")).items()
    }


def _finite(value: Any) -> float:
    if not math.isfinite(number(value)):
        raise ValueError(f"{value} where a finite number was expected")
    return float(value)


def top1_of_epochs(run: Run, choice: str) -> float | None:
    """A run's top-1 under its own statistics: ``choice`` is ``final`` (its evaluation), ``best`` of
    its epochs, or ``median5``, the median of the last five.

    None without a final accuracy, or for the reason that :func:`why_no_epochs` gives.
    """
    final = run.top1()
    if choice == "final" or final is None or why_no_epochs(run):
        return final if choice == "final" else None
    curve = [e.validation.get(run.statistics) for e in read_epochs(run)]
    values = [value for value in curve if value is not None]
    return max(values) if choice == "best" else median(values[-5:])


def why_no_epochs(run: Run) -> str:
    """Why no epoch's top-1 can represent ``run``: unreadable metrics, or no epoch validated under
    its statistics. Empty if one can."""
    try:
        epochs = read_epochs(run)
    except UserError as error:
        return str(error)
    if any(run.statistics in epoch.validation for epoch in epochs):
        return ""
    return (
        f"{run.path}: none of its {len(epochs)} epochs was validated under {run.statistics}, which "
        "represents the run in tables; it has a final accuracy only"
    )


def stage_weights(epoch: Epoch, stage: str = "") -> dict[str, dict[str, float]]:
    """Kind -> member -> importance weight, averaged over the layers of ``stage`` (``res1`` to
    ``res5``; all by default) whose Omega has that member; empty without such layers."""
    means: dict[str, dict[str, float]] = {}
    layers = [kinds for name, kinds in epoch.weights.items() if stage in ("", stage_of(name))]
    for kind in KIND_SYMBOLS:
        members = {member for kinds in layers for member in kinds[kind]}
        means[kind] = {
            m: fmean(kinds[kind][m] for kinds in layers if m in kinds[kind])
            for m in sorted(members)
        }
    return means if layers else {}
