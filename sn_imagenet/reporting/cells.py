"""Summaries of the seeds of a cell, as tables show them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from sn_imagenet.config import NON_EXPERIMENT_KEYS
from sn_imagenet.reporting.curves import score_of_epochs
from sn_imagenet.reporting.render import round_half_up
from sn_imagenet.reporting.statistics import Interval, difference_interval, mean_interval
from sn_imagenet.runs import (
    DIVERGED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    STATES,
    Cell,
    Run,
    deviations_from_config,
    flatten_config,
)
from sn_imagenet.runs.evaluations import EVALNORM
from sn_imagenet.runs.methods import IMPORTED
from sn_imagenet.runs.scores import Score

MISSING = "—"
MARKS = {
    "†": "the two cells have different seeds",
    "‡": "seeds that diverged are left out of the mean",
    "§": "the two cells differ in more than the normalization method",
}

# Config keys in which the seeds of one experiment may differ. A setting's name is only its label,
# and each seed may train the architecture that its own search found.
_SAME_EXPERIMENT = {*NON_EXPERIMENT_KEYS, "seed", "batch.name"}
_SAME_EXPERIMENT |= {f"model.args.architecture.{cell}" for cell in ("normal", "reduction")}
# Config keys that define a cell and how its statistics are computed.
CELL_KEYS = ("norm.", "batch.", "calibration.")
_ABBREVIATIONS = {"bn", "gn", "sn", "in", "ln", "brn", "bkn", "wn", "ssn", "bin", "frn", "ebn"}
_STATISTICS = {
    "moving_average": "moving average",
    "batch_average": "batch average",
    "sample": "per-sample statistics",
    EVALNORM: "EvalNorm",
}


@dataclass(frozen=True)
class Summary:
    """The runs of one cell. ``values``: the score of the seeds that have a number;
    ``conflict``: why the runs are not seeds of one experiment, empty if they are.
    """

    runs: tuple[Run, ...]
    values: tuple[float, ...]
    conflict: str = ""
    counted: tuple[Run, ...] = ()  # the runs of ``values``

    @property
    def mean(self) -> float | None:
        """Mean over seeds, None without a number."""
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds, None below two seeds."""
        return stdev(self.values) if len(self.values) >= 2 else None

    @property
    def interval(self) -> Interval | None:
        """Student's 95 % interval of the mean over seeds, None below two or without spread."""
        return mean_interval(self.values)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of ``values``."""
        return tuple(run.seed for run in self.counted)

    @property
    def states(self) -> Counter[str]:
        """Number of runs by state."""
        return Counter(run.state for run in self.runs)

    @property
    def omits_diverged(self) -> bool:
        """Whether the mean leaves out seeds that diverged."""
        return bool(self.values) and self.states[DIVERGED] > 0

    def text(self, digits: int = 1) -> str:
        """The cell as shown: ``91.2``, ``91.2 ± 0.3 (3)``, ``91.2 (1 of 2; 1 diverged)``,
        ``running 3/10``, ``diverged (3)``, ``mixed configs``, or a dash where there is no run.
        """
        if not self.runs:
            return MISSING
        if self.conflict:
            return f"mixed configs ({len(self.runs)} runs)"
        if not self.values:
            return self._unfinished() if not self.states[FINISHED] else "no epochs"
        number = str(round_half_up(fmean(self.values), digits))
        if self.std is not None:
            number += f" ± {round_half_up(self.std, digits)}"
        if len(self.values) < len(self.runs):
            return f"{number} ({len(self.values)} of {len(self.runs)}; {self._others()})"
        return f"{number} ({len(self.runs)})" if len(self.runs) > 1 else number

    def _unfinished(self) -> str:
        if len(self.runs) == 1:
            return _state_text(self.runs[0].state, self.runs)
        if len(self.states) == 1:
            return f"{_state_text(self.runs[0].state, self.runs)} ({len(self.runs)})"
        return self._others()

    def _others(self) -> str:
        return ", ".join(
            f"{self.states[state]} {_state_text(state, self.runs)}"
            for state in STATES
            if state != FINISHED and self.states[state]
        )


def _state_text(state: str, runs: Sequence[Run]) -> str:
    if state not in (RUNNING, INTERRUPTED):
        return state
    return f"{state} {', '.join(run.detail for run in runs if run.state == state)}"


@dataclass(frozen=True)
class Difference:
    """One cell minus another."""

    first: Summary
    second: Summary

    @property
    def mean(self) -> float | None:
        """Of the unrounded means; None where one of them is missing."""
        return minus(self.first.mean, self.second.mean)

    @property
    def interval(self) -> Interval | None:
        """Welch's 95 % interval over seeds."""
        return difference_interval(self.first.values, self.second.values)

    @property
    def marks(self) -> dict[str, str]:
        """The marks that limit what the difference tells (:data:`MARKS`), each with the details."""
        if self.mean is None:
            return {}
        first, second = self.first, self.second
        marks = {}
        if set(first.seeds) != set(second.seeds):
            seeds = (" ".join(map(str, cell.seeds)) for cell in (first, second))
            marks["†"] = f"seeds {' against '.join(seeds)}"
        if first.omits_diverged or second.omits_diverged:
            marks["‡"] = ""
        if different := run_differences(first.runs, second.runs):
            marks["§"] = different
        return marks


def summarize(runs: Sequence[Run], statistics: str | None = None, epoch: str = "final") -> Summary:
    """Summarize the seeds of one cell by the score under ``statistics``, by default those that each
    run uses for Table 2. Runs that were not evaluated under ``statistics`` are left out.
    ``epoch``: see :func:`~sn_imagenet.reporting.curves.score_of_epochs`.

    Seeds of different experiments are not averaged; ``conflict`` then says what differs.
    """
    if statistics:
        runs = [
            run for run in runs if run.state != FINISHED or statistics in run.counted_evaluations
        ]
    conflict = _conflict(runs)
    values = [
        run.score_value(statistics) if statistics else score_of_epochs(run, epoch) for run in runs
    ]
    numbered = [(v, run) for v, run in zip(values, runs, strict=True) if v is not None]
    if conflict:
        numbered = []
    return Summary(
        tuple(runs), tuple(v for v, _ in numbered), conflict, tuple(run for _, run in numbered)
    )


def by_cell(runs: Iterable[Run]) -> dict[Cell, list[Run]]:
    """The runs of each cell, in order of seed."""
    cells: dict[Cell, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, str(run.path))):
        cells.setdefault(run.cell, []).append(run)
    return cells


def _conflict(runs: Sequence[Run]) -> str:
    """Why ``runs`` are not seeds of one experiment: their configs differ, or a seed occurs twice
    and would count as two draws. Empty if they are."""
    configs = [experiment(run) for run in runs if run.config]
    keys = sorted(set().union(*configs))
    different = []
    for key in keys:
        values = list(dict.fromkeys(config.get(key, "absent") for config in configs))
        if len(values) > 1:
            different.append(f"{key} = {' / '.join(values)}")
    if different:
        return "; ".join(different)
    repeated = [seed for seed, count in Counter(run.seed for run in runs).items() if count > 1]
    return f"seed {repeated[0]} occurs more than once" if repeated else ""


def run_differences(first: Sequence[Run], second: Sequence[Run]) -> str:
    """Config keys other than method and setting in which the runs of two cells differ, so that a
    difference between the cells has more than one cause. Empty without any."""
    configured = [[run for run in runs if run.config] for runs in (first, second)]
    if not all(configured):
        return ""
    a, b = (
        {k: v for k, v in experiment(runs[0]).items() if not k.startswith(CELL_KEYS)}
        for runs in configured
    )
    return "; ".join(
        f"{key} = {a.get(key, 'absent')} / {b.get(key, 'absent')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    )


def experiment(run: Run) -> dict[str, str]:
    """The part of the config that the seeds of a cell share: key -> value as JSON. Runs that start
    from other seeds or methods of the same classifier have the same ``init``."""
    values = {**run.config, "init": _without_cell(run)} if run.config.get("init") else run.config
    return {
        key: json.dumps(value, sort_keys=True)
        for key, value in flatten_config(values).items()
        if key not in _SAME_EXPERIMENT and value is not None  # as in a config older than the key
    }


def _without_cell(run: Run) -> str:
    """``init`` of a run without the seed and the method in its path."""
    backbone = run.cell.norm.split("+")[0].removeprefix("frozen_")
    names = {f"seed{run.seed}": "seed*", backbone: "*"}
    return "/".join(names.get(part, part) for part in str(run.config["init"]).split("/"))


def method_label(norm: str) -> str:
    """``BN`` for ``bn``, ``BN (imported)`` for imported weights, ``frozen_bn+SN`` for a pair; other
    names are unchanged. ``evalnorm`` is BN under these statistics."""
    if norm == EVALNORM:
        return "BN (EvalNorm)"
    if "+" in norm:
        return "+".join(map(method_label, norm.split("+")))
    name = norm.removesuffix(IMPORTED)
    return norm.replace(name, name.upper(), 1) if name in _ABBREVIATIONS else norm


def minus(first: float | None, second: float | None) -> float | None:
    """``first - second``; None where one of them is missing."""
    return None if first is None or second is None else first - second


def score_heading(score: Score) -> str:
    """The score with its unit: ``top-1 (%)``."""
    return f"{score.label} ({score.unit})" if score.unit else score.label


def score_text(score: Score, value: float | None) -> str:
    """A value of the score: two decimals in percent, else five significant digits."""
    if value is None:
        return MISSING
    return str(round_half_up(value, 2)) if score.unit == "%" else f"{value:.5g}"


def statistics_label(statistics: str) -> str:
    """The evaluation statistics in words: ``moving average``, ``batch average``, ..."""
    return _STATISTICS.get(statistics, statistics)


def evaluation_label(run: Run, evaluation: dict[str, Any]) -> str:
    """The statistics of an evaluation in words, and how it differs from the run's config:
    ``batch average, 1000 samples, last.pt``."""
    other = deviations_from_config(evaluation, run.config, run.data_fingerprint)
    return ", ".join([statistics_label(evaluation["statistics"]), *other])


def signed_text(difference: float | None, digits: int) -> str:
    """``+0.4``; a dash without a difference."""
    return MISSING if difference is None else f"{round_half_up(difference, digits):+}"


def interval_text(interval: Interval | None, digits: int, sign: str = "") -> str:
    """``[76.2, 77.6]``; empty without an interval. ``sign``: ``+`` for signed numbers."""
    if interval is None:
        return ""
    low, high = (f"{round_half_up(end, digits):{sign}}" for end in interval)
    return f"[{low}, {high}]"
