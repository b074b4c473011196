"""The metrics of a run by epoch, from its ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from sn_imagenet.errors import UserError
from sn_imagenet.runs import UNREADABLE, LayerWeights, Run, RunDirectory, stage_of
from sn_imagenet.runs.metrics import require_own_rows
from sn_imagenet.runs.reading import mapping, number, open_to_read, parse_json
from sn_imagenet.runs.scores import TOP1, Score, read_score

EPOCH_CHOICES = {  # which epoch's score counts
    "final": "the evaluation after the last epoch",
    "best": "the best epoch, chosen on the validation set itself, which favors it",
    "median5": "the median of the last five epochs",
}
KIND_SYMBOLS = {"mean": "μ", "variance": "σ"}  # kinds of importance weights
BOTH = ""  # kinds, averaged


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run, ``number`` counted from 1; in a run that is validated at an interval in
    steps, one validation, ``number`` being its step.

    ``train``: the score on the training samples since the epoch before (top-1: augmented, in
    percent), None where no row records it. ``validation``: statistics -> score. ``weights``: the
    importance weights of each layer, empty for methods other than SN.
    """

    number: int
    train: float | None
    validation: dict[str, float]
    weights: tuple[LayerWeights, ...] = ()


def metrics_lines(run: Run) -> list[bytes]:
    """The complete lines of ``metrics.jsonl``, without one that a run is writing; empty without the
    file.

    Raises:
        UserError: it cannot be read, or is of another run.
    """
    file = run.path / "metrics.jsonl"
    require_own_rows(RunDirectory(run.path), run.config)
    try:
        with open_to_read(file) as opened:
            return opened.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def read_epochs(run: Run) -> list[Epoch]:
    """The epochs that ``run`` has completed, in order; empty without a ``metrics.jsonl``.

    Raises:
        UserError: a line is malformed; names the file and the line.
    """
    key = (recorded_score(run) or run.score).key
    by_step = validates_by_step(run)
    total, steps = 0.0, 0  # of the training rows since the epoch before
    epochs: dict[int, Epoch] = {}
    for i, line in enumerate(metrics_lines(run), start=1):
        try:
            row = parse_json(line, finite=False)
            if row["kind"] == "train" and (key in row or key == TOP1.key):
                steps += int(row["steps"])
                total += int(row["steps"]) * number(row[key])
            elif row["kind"] == "epoch" or (by_step and row["kind"] == "validation"):
                at = int(row["step" if by_step else "epoch"])
                train = total / steps if steps else None
                epochs[at] = Epoch(at, train, _validation(row, key), _weights(row))
                total, steps = 0.0, 0
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{run.path / 'metrics.jsonl'}, line {i}: not a row of a run's metrics "
                f"({error!r}); no curve of this run is drawn"
            ) from error
    return [epochs[epoch] for epoch in sorted(epochs)]


def recorded_score(run: Run) -> Score | None:
    """The score that a run has recorded; None before its first validation."""
    if run.rows is None:
        return None if run.state == UNREADABLE else run.score
    rows = [row for row in (run.rows.epoch, run.rows.validation) if row]
    return read_score(rows[0].get("score")) if rows else None


def validates_by_step(run: Run) -> bool:
    """Whether the run is validated at an interval in steps instead of at the end of each epoch."""
    return mapping(run.config.get("trainer")).get("validate_every") is not None


def try_epochs(run: Run) -> tuple[list[Epoch], str]:
    """:func:`read_epochs`, or no epochs and why they cannot be read."""
    try:
        return read_epochs(run), ""
    except UserError as error:
        return [], str(error)


def _validation(row: dict[str, Any], key: str) -> dict[str, float]:
    """Statistics -> score: the statistics of every epoch, and the batch average if calibrated.
    Empty without validation data."""
    counted = {str(row["val"]["statistics"]): row["val"]} if row.get("val") else {}
    if row.get("calibrated"):
        counted["batch_average"] = row["calibrated"]
    return {name: _finite(values[key]) for name, values in counted.items()}


def _weights(row: dict[str, Any]) -> tuple[LayerWeights, ...]:
    layers = mapping(row.get("importance_weights"))
    return tuple(
        LayerWeights(
            str(layer),
            stage_of(layer),
            "",
            *({str(m): _finite(w) for m, w in kinds[kind].items()} for kind in KIND_SYMBOLS),
        )
        for layer, kinds in layers.items()
    )


def _finite(value: Any) -> float:
    if not math.isfinite(number(value)):
        raise ValueError(f"{value} where a finite number was expected")
    return float(value)


def score_of_epochs(run: Run, choice: str) -> float | None:
    """A run's score under its own statistics: ``choice`` is ``final`` (its evaluation), ``best`` of
    its epochs, or ``median5``, the median of the last five.

    None without a final score, without an epoch that was validated under these statistics, and
    where ``metrics.jsonl`` cannot be read.
    """
    final = run.score_value()
    if choice == "final" or final is None:
        return final
    curve = [epoch.validation.get(run.statistics) for epoch in try_epochs(run)[0]]
    values = [value for value in curve if value is not None]
    best = max if run.score.higher_is_better else min
    return (best(values) if choice == "best" else median(values[-5:])) if values else None


def mean_weight(
    layers: Sequence[LayerWeights], kind: str, member: str, stage: str = "", conv: str = ""
) -> float | None:
    """The importance weight of ``member`` for ``kind`` (mean, variance, or both), averaged over the
    layers of a stage and after a kind of convolution (by default all) whose Omega has it; None
    without."""
    weights = [
        weight
        for layer in layers
        if stage in ("", layer.stage) and conv in ("", layer.conv)
        for one in ((kind,) if kind else KIND_SYMBOLS)
        if (weight := getattr(layer, one).get(member)) is not None
    ]
    return fmean(weights) if weights else None
