"""What a run measured epoch by epoch, from its ``metrics.jsonl``."""

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
TABLES = ("mean", "variance")


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run, ``number`` counted from 1; accuracies in percent.

    ``train``: top-1 on the augmented training samples of the epoch, None where no row says.
    ``validation``: statistics -> top-1. ``weights``: layer -> table (mean, variance) -> member of
    Omega -> importance weight, empty for other methods than SN.
    """

    number: int
    train: float | None
    validation: dict[str, float]
    weights: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def read_epochs(run: Run) -> list[Epoch]:
    """The epochs that ``run`` has completed, in order; empty without a ``metrics.jsonl``.

    The last line may be cut off: a writer may be at work.

    Raises:
        UserError: another line is no row of a run; names the file and the line.
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
    for place, line in enumerate(lines, start=1):
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
                f"{file}, line {place}: not a row of a run's metrics ({error!r}); no curve is "
                "drawn of this run"
            ) from error
    return [epochs[epoch] for epoch in sorted(epochs)]


def _validation(row: dict[str, Any]) -> dict[str, float]:
    """Top-1 by statistics: those of every epoch, and the batch average where it was calibrated."""
    counted = {str(row["val"]["statistics"]): row["val"]}
    if row.get("calibrated"):
        counted["batch_average"] = row["calibrated"]
    return {name: _finite(values["top1"]) for name, values in counted.items()}


def _weights(row: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        str(layer): {
            table: {str(m): _finite(w) for m, w in tables[table].items()} for table in TABLES
        }
        for layer, tables in mapping(row.get("importance_weights")).items()
    }


def _finite(value: Any) -> float:
    if not math.isfinite(number(value)):
        raise ValueError(f"{value} where a finite number was expected")
    return float(value)


def top1_of_epochs(run: Run, choice: str) -> float | None:
    """A run's top-1 under its own statistics, by ``choice``: ``final`` (its evaluation),
    ``best`` of its epochs, or ``median5``, the median of the last five.

    None where the run has no final number, or :func:`why_no_epochs` says why.
    """
    final = run.top1()
    if choice == "final" or final is None or why_no_epochs(run):
        return final if choice == "final" else None
    curve = [e.validation.get(run.statistics) for e in read_epochs(run)]
    values = [value for value in curve if value is not None]
    return max(values) if choice == "best" else median(values[-5:])


def why_no_epochs(run: Run) -> str:
    """Why no top-1 of an epoch stands for ``run``: unreadable metrics, or epochs that were not
    validated under its statistics; empty if one does."""
    try:
        epochs = read_epochs(run)
    except UserError as error:
        return str(error)
    if any(run.statistics in epoch.validation for epoch in epochs):
        return ""
    return (
        f"{run.path}: none of its {len(epochs)} epochs was validated under {run.statistics}, which "
        "stands for the run; it has a final number only"
    )


def mean_weights(epoch: Epoch, stage: str = "") -> dict[str, dict[str, float]]:
    """Table -> member -> importance weight, averaged over the layers of ``stage`` (``res1`` to
    ``res5``; all by default) that choose from that member; empty without such layers."""
    means: dict[str, dict[str, float]] = {}
    layers = [tables for name, tables in epoch.weights.items() if stage in ("", stage_of(name))]
    for table in TABLES:
        members = {member for tables in layers for member in tables[table]}
        means[table] = {
            m: fmean(tables[table][m] for tables in layers if m in tables[table])
            for m in sorted(members)
        }
    return means if layers else {}
