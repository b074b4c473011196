"""Summaries of the seeds of a cell, as tables show them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from sn_imagenet.config import NON_EXPERIMENT_KEYS
from sn_imagenet.reporting.curves import score_of_epochs
from sn_imagenet.reporting.render import Columns, plain, round_half_up
from sn_imagenet.reporting.statistics import Estimate, Interval, contrast, mean_interval
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
CELL_KEYS = ("norm.", "batch.", "calibration.", "task.row")
_LABELS = {EVALNORM: "BN (EvalNorm)", "frozen_bn": "BN frozen"}
_LABELS |= {"sync_bn": "SyncBN", "mean_bn": "mean-only BN"}
_ABBREVIATIONS = {"bn", "gn", "sn", "in", "ln", "brn", "bkn", "wn", "ssn", "bin", "frn", "ebn"}
_STATISTICS = {
    "moving_average": "moving average",
    "batch_average": "batch average",
    "sample": "per-sample statistics",
    EVALNORM: "EvalNorm",
}


@dataclass(frozen=True)
class Summary:
    """The runs of one cell. ``values``: the score of the seeds that have a number, the runs
    ``counted``; ``conflict``: why the runs are not seeds of one experiment, empty if they are.
    """

    runs: tuple[Run, ...] = ()
    values: tuple[float, ...] = ()
    conflict: str = ""
    counted: tuple[Run, ...] = ()

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
    def finished(self) -> list[Run]:
        """The runs that have finished."""
        return [run for run in self.runs if run.state == FINISHED]

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
        total = len(self.runs)
        if not self.runs:
            return MISSING
        if self.conflict:
            return f"mixed configs ({total} runs)"
        unfinished = {state: self._state_text(state) for state in STATES if self.states[state]}
        finished = unfinished.pop(FINISHED, "")
        others = ", ".join(f"{self.states[state]} {text}" for state, text in unfinished.items())
        if not self.values:
            if finished or len(unfinished) > 1:
                return "no epochs" if finished else others
            (text,) = unfinished.values()
            return f"{text} ({total})" if total > 1 else text
        number = f"{round_half_up(fmean(self.values), digits):f}"
        if self.std is not None:
            number += f" ± {round_half_up(self.std, digits):f}"
        if len(self.values) < total:
            return f"{number} ({len(self.values)} of {total}; {others})"
        return f"{number} ({total})" if total > 1 else number

    @property
    def columns(self) -> Columns:
        """The columns of the CSV."""
        states = {"mixed configs": len(self.runs)} if self.conflict else self.states
        return {
            "n_seeds": len(self.values),
            "mean": self.mean,
            "std": self.std,
            **_interval_columns(self.interval),
            "states": ";".join(f"{state}:{n}" for state, n in states.items()) or "missing",
            "statistics": ";".join(sorted({run.statistics for run in self.runs} - {""})),
        }

    def _state_text(self, state: str) -> str:
        details = ", ".join(run.detail for run in self.runs if run.state == state)
        return f"{state} {details}" if state in (RUNNING, INTERRUPTED) else state


@dataclass(frozen=True)
class Difference:
    """A sum of cells, each with a sign; usually one minus another. ``mean``: of the unrounded
    means, ``interval``: Welch's 95 % interval over seeds; None where they are missing. ``marks``:
    what limits what the difference of two cells tells (:data:`MARKS`), each with the details."""

    terms: tuple[tuple[float, Summary], ...]
    runs = ()

    @cached_property
    def estimate(self) -> Estimate | None:
        groups = [cell.values for _, cell in self.terms]
        return contrast(groups, [sign for sign, _ in self.terms]) if groups else None

    @property
    def mean(self) -> float | None:
        return self.estimate.effect if self.estimate else None

    @property
    def interval(self) -> Interval | None:
        return self.estimate.interval if self.estimate else None

    def text(self, digits: int = 1) -> str:
        """``+0.4†``; a dash without a difference."""
        return signed_text(self.mean, digits) + "".join(self.marks)

    @property
    def columns(self) -> Columns:
        """The columns of the CSV."""
        seeds = min((len(cell.values) for _, cell in self.terms), default=0)
        columns: Columns = {"n_seeds": seeds, "mean": self.mean, "marks": "".join(self.marks)}
        return columns | _interval_columns(self.interval)

    @cached_property
    def marks(self) -> dict[str, str]:
        cells = [cell for _, cell in self.terms]
        if len(cells) != 2 or not all(cell.values for cell in cells):
            return {}
        first, second = cells
        marks = {}
        seeds = [[run.seed for run in cell.counted] for cell in (first, second)]
        if set(seeds[0]) != set(seeds[1]):
            marks["†"] = f"seeds {' against '.join(' '.join(map(str, one)) for one in seeds)}"
        if first.omits_diverged or second.omits_diverged:
            marks["‡"] = ""
        if different := run_differences(first.runs, second.runs):
            marks["§"] = different
        return marks


def _interval_columns(interval: Interval | None) -> Columns:
    return dict(zip(("ci95_low", "ci95_high"), interval or (None, None), strict=True))


def summarize(runs: Sequence[Run], statistics: str | None = None, epoch: str = "final") -> Summary:
    """Summarize the seeds of one cell by the score under ``statistics``, by default those that each
    run uses for Table 2. Runs that were not evaluated under ``statistics`` are left out.
    ``epoch``: see :func:`~sn_imagenet.reporting.curves.score_of_epochs`.

    Seeds of different experiments are not averaged; ``conflict`` then says what differs.
    """
    if statistics:
        runs = [r for r in runs if r.state != FINISHED or statistics in r.counted_evaluations]
    if conflict := _conflict(runs):
        return Summary(tuple(runs), conflict=conflict)
    scores = {
        run: run.score_value(statistics) if statistics else score_of_epochs(run, epoch)
        for run in runs
    }
    values = {run: value for run, value in scores.items() if value is not None}
    return Summary(tuple(runs), tuple(values.values()), counted=tuple(values))


def by_cell(runs: Iterable[Run]) -> dict[Cell, list[Run]]:
    """The runs of each cell, in order of seed."""
    cells: dict[Cell, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, str(run.path))):
        cells.setdefault(run.cell, []).append(run)
    return cells


def _conflict(runs: Sequence[Run]) -> str:
    """Why ``runs`` are not seeds of one experiment: their configs differ, or a seed occurs twice
    and would count as two draws. Empty if they are."""
    if different := _config_differences([experiment(run) for run in runs if run.config]):
        return different
    repeated = [seed for seed, count in Counter(run.seed for run in runs).items() if count > 1]
    return f"seed {repeated[0]} occurs more than once" if repeated else ""


def run_differences(first: Sequence[Run], second: Sequence[Run]) -> str:
    """Config keys other than method and setting in which the runs of two cells differ, so that a
    difference between the cells has more than one cause. Empty without any."""
    configs = [
        next((experiment(run) for run in runs if run.config), {}) for runs in (first, second)
    ]
    if not all(configs):
        return ""
    return _config_differences(
        [{k: v for k, v in config.items() if not k.startswith(CELL_KEYS)} for config in configs]
    )


def _config_differences(configs: Sequence[dict[str, str]]) -> str:
    """``trainer.epochs = 10 / 20; ...`` for the keys in which configs differ."""
    values = {
        key: list(dict.fromkeys(config.get(key, "absent") for config in configs))
        for key in sorted(set().union(*configs))
    }
    return "; ".join(f"{key} = {' / '.join(v)}" for key, v in values.items() if len(v) > 1)


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
    """``BN`` for ``bn``, ``BN (imported)`` for imported weights, ``BN frozen + SN`` for
    ``frozen_bn+sn``; other names are unchanged. ``evalnorm`` is BN under these statistics."""
    if norm in _LABELS:
        return _LABELS[norm]
    if "+" in norm:
        return " + ".join(map(method_label, norm.split("+")))
    name = norm.removesuffix(IMPORTED)
    return norm.replace(name, name.upper(), 1) if name in _ABBREVIATIONS else plain(norm)


def cell_label(cell: Cell) -> str:
    """The method of a cell as shown: its own label, or :func:`method_label`."""
    return plain(cell.label) or method_label(cell.norm)


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
    return MISSING if difference is None else f"{round_half_up(difference, digits):+f}"


def interval_text(interval: Interval | None, digits: int, sign: str = "") -> str:
    """``[76.2, 77.6]``; empty without an interval. ``sign``: ``+`` for signed numbers."""
    if interval is None:
        return ""
    low, high = (f"{round_half_up(end, digits):{sign}f}" for end in interval)
    return f"[{low}, {high}]"
