"""Architecture search: what it found, and the claims on it (Sec. 4.4, Fig. 6(b))."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from sn_imagenet.reporting.cells import MISSING, Summary, by_cell, method_label, summarize
from sn_imagenet.reporting.render import Grid, Row, round_half_up, rounded
from sn_imagenet.reporting.statistics import contrast
from sn_imagenet.reporting.study import Study, difference, paired, validation_interval
from sn_imagenet.reporting.verdict import LEAST_SEEDS, Claim, Comparison, Judgment, judge
from sn_imagenet.runs import FINISHED, Run

SEARCH = "architecture_search"
CELL_NETWORK = "cell"
_UNIT = "points of validation accuracy"
_NOT_IN_PAPER = "not in the paper"


def from_scratch(study: Study, method: str) -> Summary:
    """The networks that were trained from scratch with the architectures that ``method`` found:
    runs of ``model=cell`` whose row is the method."""
    runs = [
        run
        for cell, seeds in by_cell(study.collection.runs).items()
        if (cell.data, cell.model, cell.row) == (study.data, CELL_NETWORK, method)
        for run in seeds
    ]
    return summarize(runs)


def sn_above_ln_and_gn(study: Study) -> Judgment:
    """SN - LN and SN - GN above 0."""
    return judge(_differences(study, [("sn", "ln"), ("sn", "gn")]), all_parts=True)


def normalized_above_plain(study: Study) -> Judgment:
    """LN, GN and SN, each minus no normalization, above 0."""
    return judge(_differences(study, [(m, "none") for m in ("ln", "gn", "sn")]), all_parts=True)


def sn_above_random(study: Study) -> Judgment:
    """SN - random search above 0."""
    return judge(_differences(study, [("sn", "random")]))


def found_above_random(study: Study) -> Judgment:
    """Top-1 of the architectures of SN minus that of random search, trained from scratch."""
    cells = [from_scratch(study, method) for method in ("sn", "random")]
    groups, (first, second) = [cell.values for cell in cells], [cell.mean for cell in cells]
    counts = [len(group) for group in groups]
    problems = [cell.conflict for cell in cells if cell.conflict]
    if min(counts) < LEAST_SEEDS:
        problems.append(
            f"trained from scratch: {counts[0]} architectures of SN, {counts[1]} of random search; "
            f"{LEAST_SEEDS} are needed"
        )
    comparison = Comparison(
        "SN-random, from scratch",
        tuple(dict.fromkeys(run.cell.setting for cell in cells for run in cell.runs)),
        low=0.0,
        effect=None if first is None or second is None else first - second,
        estimate=contrast(groups, [1.0, -1.0]) if all(groups) else None,
        why_not="; ".join(problems),
        test="Welch's t interval over seeds, each with the architecture of its own search",
        seeds=dict(zip(("SN", "random"), counts, strict=True)),
        runs=tuple(run for cell in cells for run in cell.runs),
        validation=validation_interval(cells),
    )
    return judge([comparison])


def lstm_prefers_ln(study: Study) -> Judgment:
    """SN's weight of LN minus that of GN, averaged over layers and over μ and σ, above 0."""
    return judge(
        [
            paired(
                f"SN's weight, LN - GN {setting}",
                setting,
                [run for run in study.cell("sn", setting).runs if run.state == FINISHED],
                _ln_above_gn,
                low=0.0,
                unit="importance weight",
            )
            for setting in study.settings
        ]
    )


def _differences(study: Study, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    return [
        replace(difference(study, *pair, setting, low=0.0), unit=_UNIT)
        for setting in study.settings
        for pair in pairs
    ]


def _ln_above_gn(run: Run) -> float | None:
    gaps = [
        kind["ln"] - kind["gn"]
        for layer in run.weights
        for kind in (layer.mean, layer.variance)
        if {"ln", "gn"} <= kind.keys()
    ]
    return fmean(gaps) if gaps else None


SEARCH_CLAIMS = (
    Claim(
        1,
        "With SN in the controller, validation accuracy is higher than with LN and with GN.",
        "Fig. 6(b)",
        sn_above_ln_and_gn,
    ),
    Claim(2, "In the LSTM, SN's weight of LN is above that of GN.", "Fig. 1(c)", lstm_prefers_ln),
    Claim(
        3,
        "A controller with LN, GN or SN is better than one without normalization.",
        _NOT_IN_PAPER,
        normalized_above_plain,
    ),
    Claim(
        4,
        "SN's controller is better than random search with as many children.",
        _NOT_IN_PAPER,
        sn_above_random,
    ),
    Claim(
        5,
        "Trained from scratch, SN's architectures are better than those of random search.",
        _NOT_IN_PAPER,
        found_above_random,
    ),
)


def search_grid(study: Study) -> Grid | None:
    """A row per method: the numbers of its searches, and of training from scratch; None for other
    tasks."""
    if study.task != SEARCH:
        return None
    rows = [Row(method_label(str(row["method"])), tuple(_texts(row))) for row in search_rows(study)]
    return Grid(
        caption=f"Architecture search on {study.name}: accuracy (%).",
        columns=tuple(label for _, label in _COLUMNS),
        rows=tuple(rows),
        notes=(
            "Mean ± sample standard deviation (number of seeds). Sampled: mean over architectures "
            "that the controller samples at the end. Best: the best of them and of the last "
            "epoch's, chosen on the same images. Both and the test accuracy with shared weights, "
            "normalized by batch statistics. From scratch: the best architecture, trained alone.",
        ),
    )


_COLUMNS = (
    ("val_accuracy", "validation, sampled"),
    ("best_val_accuracy", "validation, best"),
    ("test_accuracy", "test, best"),
    ("from_scratch", "test, from scratch"),
)


def search_rows(study: Study) -> list[dict[str, object]]:
    """The rows of the CSV: mean, standard deviation and number of seeds of each number."""
    rows: list[dict[str, object]] = []
    for (method, setting), cell in study.cells.items() if study.task == SEARCH else ():
        counted = [run.counted_evaluations.get(run.statistics) for run in cell.counted]
        row: dict[str, object] = {"method": method, "setting": setting.name}
        for key, _ in _COLUMNS:
            summary = from_scratch(study, method)
            if key != "from_scratch":
                values = [float(e[key]) for e in counted if e and key in e]
                summary = Summary((), tuple(values))
            row |= {
                key: rounded(summary.mean),
                f"{key}_std": rounded(summary.std),
                f"{key}_n": len(summary.values),
            }
        rows.append(row)
    return rows


def _texts(row: dict[str, object]) -> list[str]:
    texts = []
    for key, _ in _COLUMNS:
        mean, std, count = (row[key + end] for end in ("", "_std", "_n"))
        if not isinstance(mean, float):
            texts.append(MISSING)
            continue
        spread = f" ± {round_half_up(std, 1)} ({count})" if isinstance(std, float) else ""
        texts.append(f"{round_half_up(mean, 1)}{spread}")
    return texts
