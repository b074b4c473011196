"""Tables 3, 4 and 5: AP by the methods of backbone and heads, pretrained and from scratch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from sn_imagenet.reporting.cells import MISSING, Summary, by_cell, method_label, summarize
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.render import (
    Document,
    Grid,
    Row,
    code_span,
    grid_markdown,
    interval_columns,
    markdown_escape,
    markdown_table,
    round_half_up,
    rounded,
)
from sn_imagenet.reporting.statistics import mean_interval
from sn_imagenet.reporting.study import RunCollection
from sn_imagenet.runs import FINISHED, Run, Setting

TASK = "detection"
STARTS = {"pretrained": "", "scratch": "from scratch"}  # rows of the task, and their labels
_HEADINGS = {
    "ap": "AP", "ap50": "AP.5", "ap75": "AP.75", "ap_l": "AP l", "ap_m": "AP m", "ap_s": "AP s",
    "mask_ap": "mask AP", "mask_ap50": "mask AP.5", "mask_ap75": "mask AP.75",
}  # fmt: skip
_NAMES = {"frozen_bn": "BN frozen"}


def table3(collection: RunCollection) -> Document:
    """Faster R-CNN C4: BN frozen, BN, GN and SN, and the three from scratch."""
    return _table("Table 3", collection)


def table4(collection: RunCollection) -> Document:
    """Faster R-CNN + FPN: pairs of backbone and heads."""
    return _table("Table 4", collection)


def table5(collection: RunCollection) -> Document:
    """Mask R-CNN + FPN: pairs of backbone and heads, boxes and masks."""
    return _table("Table 5", collection)


@dataclass(frozen=True)
class _Group:
    """The runs of one data set, model and setting: (start, method) -> its seeds."""

    data: str
    model: str
    setting: Setting
    cells: dict[tuple[str, str], Summary]

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells.values() for run in cell.runs]

    @property
    def title(self) -> str:
        return f"{self.data}, {self.model}, {self.setting}"


def pair_label(norm: str) -> str:
    """``BN frozen + SN`` for ``frozen_bn+sn``; ``GN`` where the heads have the same."""
    return " + ".join(_NAMES.get(part, method_label(part)) for part in norm.split("+"))


def _table(title: str, collection: RunCollection) -> Document:
    published = collection.paper.detection[title.lower().replace(" ", "")]
    groups = _groups(collection, published)
    grids = [_grid(group, published) for group in groups]
    sections = [
        _section(grid, group, collection, published)
        for grid, group in zip(grids, groups, strict=True)
    ]
    rows = [row for group in groups for row in _csv_rows(group, published)]
    warnings = [
        f"{group.title}, {pair_label(method)}: not averaged, {cell.conflict}"
        for group in groups
        for (_, method), cell in group.cells.items()
        if cell.conflict
    ]
    return Document(title, sections, [[grid] for grid in grids], rows, warnings)


def _groups(collection: RunCollection, published: Mapping[str, Any]) -> list[_Group]:
    """The runs with the table's model or its mini version, the paper's data first."""
    found: dict[tuple[str, str, Setting], dict[tuple[str, str], Summary]] = defaultdict(dict)
    order = {
        (start, method): place
        for place, (start, method) in enumerate(
            (start, method) for start in STARTS for method in published.get(start, {})
        )
    }
    for cell, runs in by_cell(collection.runs).items():
        task = runs[0].config.get("task")
        name = task.get("name") if isinstance(task, dict) else None
        if name == TASK and cell.model.removesuffix("_mini") == published["model"]:
            key = (cell.data, cell.model, cell.setting)
            found[key][cell.row, cell.norm] = summarize(runs, epoch=collection.epoch)

    def place(key: tuple[str, str]) -> tuple[Any, ...]:
        return (*STARTS, key[0]).index(key[0]), order.get(key, len(order)), key[1]

    groups = [
        _Group(*key, {k: cells[k] for k in sorted(cells, key=place)})
        for key, cells in found.items()
    ]
    return sorted(groups, key=lambda group: (group.data != "coco", group.title))


def _values(cell: Summary, key: str) -> list[float]:
    """A number of the counted evaluation of each seed that has one."""
    numbers = [run.counted_evaluations[run.statistics].get(key) for run in cell.counted]
    return [float(number) for number in numbers if number is not None]


def _text(values: Sequence[float], cell: Summary) -> str:
    if not values:
        return MISSING if cell.counted else cell.text()
    text = str(round_half_up(fmean(values), 1))
    if len(values) > 1:
        text += f" ± {round_half_up(stdev(values), 1)} ({len(values)})"
    return text


def _grid(group: _Group, published: Mapping[str, Any]) -> Grid:
    keys = published["keys"]
    rows: list[Row] = []
    previous = ""
    for (start, method), cell in group.cells.items():
        label = ", ".join(filter(None, (pair_label(method), STARTS.get(start, start))))
        cells = tuple(_text(_values(cell, key), cell) for key in keys)
        rows.append(Row(label, cells, rule=bool(rows) and start != previous))
        previous = start
        if paper := published.get(start, {}).get(method):
            rows.append(Row("paper, COCO", tuple(map(str, paper)), indent=True))
    notes = ["Mean ± standard deviation (number of seeds), in percent. CSV has 95 % intervals."]
    if group.setting != Setting.parse(published["setting"]):
        notes.append(f"The paper's setting is {Setting.parse(published['setting'])}.")
    return Grid(
        f"Average precision, {group.title}.",
        tuple(_HEADINGS[key] for key in keys),
        tuple(rows),
        tuple(notes + [" ".join(note.split()) for note in published.get("notes", ())]),
    )


def _section(
    grid: Grid, group: _Group, collection: RunCollection, published: Mapping[str, Any]
) -> str:
    parts = [f"## {markdown_escape(group.title)}", markdown_escape(grid.caption)]
    parts.append(grid_markdown(grid))
    if unfinished := [run for run in group.runs if run.state != FINISHED]:
        parts += ["### Runs without a number", "\n".join(
            f"- {code_span(collection.folders([run])[0])}: {run.state}" for run in unfinished
        )]  # fmt: skip
    departures = [[d.item, d.paper, d.ours, d.which] for d in gather_departures(group.runs)]
    header = ["item", "paper", "ours", "runs"]
    parts.append("### Departures from the paper's protocol, as recorded by the runs")
    parts.append(markdown_table(header, departures) if departures else "None.")
    return "\n\n".join(parts)


def _csv_rows(group: _Group, published: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    for (start, method), cell in group.cells.items():
        paper = published.get(start, {}).get(method) or [None] * len(published["keys"])
        for key, number in zip(published["keys"], paper, strict=True):
            values = _values(cell, key)
            yield {
                "data": group.data,
                "model": group.model,
                "setting": group.setting.name,
                "start": start,
                "method": method,
                "number": key,
                "n_seeds": len(values),
                "mean": rounded(fmean(values)) if values else None,
                "std": rounded(stdev(values)) if len(values) > 1 else None,
                **interval_columns(mean_interval(values)),
                "paper": number,
                "states": ";".join(f"{s}:{n}" for s, n in cell.states.items()),
                "statistics": ";".join(sorted({run.statistics for run in cell.runs} - {""})),
            }
