"""Architecture search: what it found, and the claims on it (Sec. 4.4, Fig. 6(b))."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sn_imagenet.reporting.cells import MISSING, Summary, method_label, minus
from sn_imagenet.reporting.comparison import (
    WEIGHT,
    Comparison,
    Term,
    Value,
    compare,
    paired,
)
from sn_imagenet.reporting.curves import KIND_SYMBOLS, mean_weight
from sn_imagenet.reporting.render import Grid, Row, rounded
from sn_imagenet.reporting.study import FOUND, Study
from sn_imagenet.reporting.verdict import Claim, Judgment, judge
from sn_imagenet.runs import FINISHED, Run

_UNIT = "points of validation accuracy"
_NOT_IN_PAPER = "not in the paper"


def from_scratch(study: Study) -> Value:
    """The top-1 of the architecture that a search found, trained from scratch: by the run of
    ``model=cell`` with its data, its method as row and its seed."""
    trained = {
        (run.cell.data, run.cell.row, run.seed): run.score_value()
        for run in study.collection.runs
        if run.cell.model == FOUND and run.cell.row
    }
    return lambda run: trained.get((run.cell.data, run.cell.norm, run.seed))


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
    """Top-1 of SN's architectures minus those of random search, trained from scratch, above 0."""
    return judge(
        [
            compare(
                study,
                Term("sn", setting),
                Term("random", setting),
                low=0.0,
                name=f"SN-random {setting}, from scratch",
                value=from_scratch(study),
            )
            for setting in study.settings
        ]
    )


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
                unit=WEIGHT,
            )
            for setting in study.settings
        ]
    )


def _differences(study: Study, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    return [
        compare(study, Term(first, setting), Term(second, setting), low=0.0, unit=_UNIT)
        for setting in study.settings
        for first, second in pairs
    ]


def _ln_above_gn(run: Run) -> float | None:
    weights = {m: [mean_weight(run.weights, k, m) for k in KIND_SYMBOLS] for m in ("ln", "gn")}
    gaps = map(minus, *weights.values())
    known = [gap for gap in gaps if gap is not None]
    return fmean(known) if known else None


CLAIMS = (
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
_COLUMNS = {
    "val_accuracy": "validation, sampled",
    "best_val_accuracy": "validation, best",
    "test_accuracy": "test, best",
    "from_scratch": "test, from scratch",
}


def search_grid(study: Study) -> Grid | None:
    """A row per method: the numbers of its searches, and of training from scratch; None for other
    tasks."""
    if study.task != "architecture_search":
        return None
    rows = []
    for (method, setting), cell in study.cells.items():
        numbers = [_summary(study, cell, key) for key in _COLUMNS]
        # Without any number, the first column says why.
        cells = (cell.text(), *(one.text() if one.values else MISSING for one in numbers[1:]))
        rows.append(Row(f"{method_label(method)} {setting}", cells))
    return Grid(
        caption=f"Architecture search on {study.name}: accuracy (%).",
        columns=tuple(_COLUMNS.values()),
        rows=tuple(rows),
        notes=(
            "Mean ± sample standard deviation (number of seeds). Sampled: mean over architectures "
            "that the controller samples at the end. Best: the best of them and of the last "
            "epoch's, chosen on the same images. These and the test accuracy are with shared "
            "weights, normalized by batch statistics. From scratch: the best architecture, trained "
            "alone.",
        ),
    )


def search_rows(study: Study) -> list[dict[str, object]]:
    """The rows of the CSV: mean, standard deviation and number of seeds of each number."""
    rows: list[dict[str, object]] = []
    for (method, setting), cell in study.cells.items():
        row: dict[str, object] = {"method": method, "setting": setting.name}
        for key in _COLUMNS:
            of_key = _summary(study, cell, key)
            row[key], row[f"{key}_std"] = rounded(of_key.mean), rounded(of_key.std)
            row[f"{key}_n"] = len(of_key.values)
        rows.append(row)
    return rows


def _summary(study: Study, cell: Summary, key: str) -> Summary:
    """The cell with the numbers ``key`` of its runs as values."""
    trained = from_scratch(study)
    values = []
    for run in cell.counted:
        counted = run.counted_evaluations[run.statistics]
        value = trained(run) if key == "from_scratch" else counted.get(key)
        values += [] if value is None else [float(value)]
    return Summary(cell.runs, tuple(values), cell.conflict)
