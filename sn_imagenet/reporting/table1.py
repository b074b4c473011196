"""Table 1: what each method learns, estimates and costs, counted in the modules, and the tasks in
which it was run, beside the paper's own entries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sn_imagenet.reporting.cells import MISSING, method_label
from sn_imagenet.reporting.detection import TASK as DETECTION
from sn_imagenet.reporting.render import Document, Grid, Row, grid_markdown
from sn_imagenet.reporting.search import SEARCH
from sn_imagenet.reporting.study import FOUND
from sn_imagenet.reporting.stylization import STYLIZATION
from sn_imagenet.runs import FINISHED, Run

CensusRow = Mapping[str, Any]
"""A :class:`sn_imagenet.benchmark.census.Census` as a dictionary."""

TakeCensus = Callable[[], Sequence[CensusRow]]
"""Takes a census of the modules, a row per method."""

COLUMNS = {
    "params": "params",
    "parameters": "#params",
    "hyperparameters": "hyper-params",
    "statistics": "statistics",
    "complexity": "complexity",
    "count": "#statistics",
    "tasks": "tasks",
}
# The paper's names of the tasks, by ours; masks are a part of detection's runs.
TASKS = {"": "classification", DETECTION: "detection", "masks": "segmentation"}
TASKS |= {STYLIZATION: "image style", SEARCH: "NAS"}
DIFFERS = " ≠"
# Why a module differs from the paper's table, by what its entry contains.
_REASONS = {
    "Ω": "Ω, the set of mixed methods, is an argument of the layer",
    "warmup_steps": "the steps are the end points of Ioffe's schedule of r and d (2017)",
    "μ′": "μ′ and σ′ are the moving averages of BN's statistics, for evaluation without "
    "calibration, which Sec. 2.1 of the paper mentions too",
}


def table1(
    census: Sequence[CensusRow],
    published: Mapping[str, Mapping[str, str | None]],
    runs: Sequence[Run] = (),
) -> Document:
    """Table 1 counted in the modules, with the paper's row beneath each and differences marked.

    ``census``: a row per method, all at one size [N, C, H, W]. ``runs``: whose tasks are marked.
    CSV: one row per method, with the measured exponents and the elements that operators read and
    write.
    """
    tasks = tasks_of(runs)
    census = [{**row, "tasks": tasks.get(row["method"])} for row in census]
    rows: list[Row] = []
    notes: list[str] = []
    for row in census:
        method, ours, paper = row["method"], _entries(row), published.get(row["method"])
        differing = differences(row, paper)
        texts = {column: _entry_text(column, entry) for column, entry in ours.items()}
        for column in ("parameters", "count"):
            if texts[column] != str(row[column]):
                texts[column] += f" = {row[column]}"
        for column in differing:
            reasons = [text for mark, text in _REASONS.items() if mark in (ours[column] or "")]
            notes.append(
                f"{method_label(method)}, {COLUMNS[column]}: "
                f"{_entry_text(column, ours[column])} here, "
                f"{_entry_text(column, paper[column] if paper else None)} in the paper"
                + (f": {'; '.join(reasons)}." if reasons else ".")
            )
            texts[column] += DIFFERS
        csv = {
            "method": method,
            **ours,
            **{f"exponent_{name}": value for name, value in (row["exponents"] or {}).items()},
            "elements_moved": row["work"],
            **{f"paper_{column}": paper[column] for column in COLUMNS if paper},
            "differs": ";".join(differing),
        }
        rows.append(Row(method_label(method), list(texts.values()), rule=bool(rows), csv=[csv]))
        rows += [_paper_row(paper)] if paper else []
    counted = {row["method"] for row in census}
    for method in (method for method in published if method not in counted):
        rows.append(Row(method_label(method), ("not in this project",) + (MISSING,) * 6, rule=True))
        rows.append(_paper_row(published[method]))
    n, c, h, w = census[0]["size"]
    grid = Grid(
        caption="Normalization methods: what they learn, estimate and cost, counted in the modules "
        f"(numbers at N, C, H, W = {n}, {c}, {h}, {w}), and as printed in the paper.",
        columns=list(COLUMNS.values()),
        rows=rows,
        notes=(
            *(notes or ["No module differs from the paper's row."]),
            "Learned parameters have a gradient. Hyper-parameters are constructor arguments that "
            "affect outputs or state. Statistics are the distinct means and variances computed for "
            "one batch; primed ones are stored. Complexity is how the number of elements that "
            "operators read and write to compute the statistics grows as N, C and HW double.",
            f"Tasks: those in which a run of the method has finished, of {len(runs)} below --runs; "
            "the paper's are its ticks (not known for BKN and WN). NAS is the LSTM of Sec. 4.4, so "
            "that the paper's columns of networks are left out.",
        ),
    )
    return Document("Table 1", [f"{grid.caption}\n\n{grid_markdown(grid)}"], [[grid]])


def tasks_of(runs: Sequence[Run]) -> dict[str, str]:
    """Method -> the tasks of Table 1 in which a run of it has finished. A network that a search
    found is not a run of the method that found it."""
    tasks: dict[str, set[str]] = {}
    for run in runs:
        if run.state == FINISHED and (run.cell.model != FOUND or run.cell.task):
            masks = ["masks"] * ("mask_ap" in run.counted_evaluations[run.statistics])
            for method in run.cell.norm.split("+"):
                tasks.setdefault(method, set()).update([run.cell.task, *masks])
    return {m: ", ".join(TASKS[task] for task in TASKS if task in of) for m, of in tasks.items()}


def complexity(exponents: Mapping[str, float] | None) -> str | None:
    """O(...) from measured exponents of N, C and HW, rounded if within 0.05 of a whole number."""
    if exponents is None:
        return None
    factors = []
    for name, exponent in exponents.items():
        whole = round(exponent)
        power = str(whole) if abs(exponent - whole) < 0.05 else f"{exponent:.2f}"
        if power != "0":
            factors.append(name if power == "1" else f"{name}^{power}")
    return "".join(factors) or "1"


def differences(row: CensusRow, published: Mapping[str, str | None] | None) -> list[str]:
    """The columns in which a module differs from the paper's row; none without such a row."""
    if published is None:
        return []
    ours = _entries(row)
    columns = [column for column in COLUMNS if column != "tasks"]
    return [c for c in columns if _unordered(ours[c]) != _unordered(published[c])]


def _entries(row: CensusRow) -> dict[str, str | None]:
    return {
        "params": ", ".join(row["params"]) or None,
        "parameters": row["parameters_formula"],
        "hyperparameters": ", ".join(row["hyperparameters"]) or None,
        "statistics": ", ".join(row["statistics"]) or None,
        "complexity": complexity(row["exponents"]),
        "count": row["count_formula"],
        "tasks": row.get("tasks") or None,
    }


def _unordered(entry: str | None) -> Counter[str]:
    """The entry without its order: 2NC + 2 equals 2 + 2CN, and ϵ, g equals g, ϵ."""
    if entry is None:
        return Counter()
    if "," in entry:
        return Counter(part.strip() for part in entry.split(","))
    terms = (re.findall(r"[^\W\d](?:\^[\d.]+)?|\d+", term) for term in entry.split("+"))
    return Counter("".join(sorted(term)) for term in terms)


def _paper_row(paper: Mapping[str, str | None]) -> Row:
    cells = tuple(_entry_text(column, paper[column]) for column in COLUMNS)
    return Row("paper", cells, indent=True)


def _entry_text(column: str, entry: str | None) -> str:
    if entry is None:
        return MISSING
    return f"O({entry})" if column == "complexity" else entry
