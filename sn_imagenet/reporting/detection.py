"""Tables 3, 4 and 5: AP by the methods of backbone and heads, pretrained and from scratch."""

from __future__ import annotations

from dataclasses import replace

from sn_imagenet.reporting.cells import MISSING, Summary, method_label
from sn_imagenet.reporting.departures import departure_notes
from sn_imagenet.reporting.render import (
    Document,
    Grid,
    Row,
    grid_markdown,
    interval_columns,
    markdown_escape,
    rounded,
)
from sn_imagenet.reporting.study import RunCollection, Study, conflict_warnings, studies_of
from sn_imagenet.runs import Setting

TASK = "detection"
STARTS = {"pretrained": "", "scratch": ", from scratch"}  # rows of the task, and their labels
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


def pair_label(norm: str) -> str:
    """``BN frozen + SN`` for ``frozen_bn+sn``; ``GN`` where the heads have the same."""
    return " + ".join(_NAMES.get(part, method_label(part)) for part in norm.split("+"))


def _table(title: str, collection: RunCollection) -> Document:
    """A grid for each data set, setting, and model of the table or its mini version, the paper's
    data first."""
    published = collection.paper.detection[title.lower().replace(" ", "")]
    keys, order = published["keys"], list(STARTS)
    groups: dict[tuple[str, str, Setting], list[Study]] = {}
    for study in sorted(studies_of(collection), key=lambda s: (s.data != "coco", s.data, s.model)):
        if study.task == TASK and study.model.removesuffix("_mini") == published["model"]:
            for setting in study.settings:
                groups.setdefault((study.data, study.model, setting), []).append(study)
    grids, columns = [], []
    for (data, model, setting), studies in groups.items():
        rows: list[Row] = []
        for study in sorted(studies, key=lambda s: (*order, s.row).index(s.row)):
            paper, start = published.get(study.row, {}), STARTS.get(study.row, f", {study.row}")
            first = True
            for method in sorted(study.methods, key=(*paper, *study.methods).index):
                cell = study.cell(method, setting)
                if not cell.runs:
                    continue
                numbers = {key: _with_values(cell, key) for key in keys}
                cells = tuple(
                    MISSING if cell.values and not of_key.values else of_key.text()
                    for of_key in numbers.values()
                )
                rows.append(Row(pair_label(method) + start, cells, rule=first and bool(rows)))
                first = False
                if method in paper:
                    rows.append(Row("paper, COCO", tuple(map(str, paper[method])), indent=True))
                columns += [
                    {
                        "data": data,
                        "model": model,
                        "setting": setting.name,
                        "start": study.row,
                        "method": method,
                        "number": key,
                        "n_seeds": len(of_key.values),
                        "mean": rounded(of_key.mean),
                        "std": rounded(of_key.std),
                        **interval_columns(of_key.interval),
                        "paper": value,
                        "states": ";".join(f"{s}:{n}" for s, n in cell.states.items()),
                        "statistics": ";".join(sorted({r.statistics for r in cell.runs} - {""})),
                    }
                    for (key, of_key), value in zip(
                        numbers.items(), paper.get(method, [None] * len(keys)), strict=True
                    )
                ]
        notes = ["Mean ± standard deviation (number of seeds), in percent. CSV has 95 % intervals."]
        if setting != Setting.parse(published["setting"]):
            notes.append(f"The paper's setting is {Setting.parse(published['setting'])}.")
        notes += [" ".join(note.split()) for note in published.get("notes", ())]
        notes += departure_notes([r for s in studies for r in s.runs if r.cell.setting == setting])
        caption = f"Average precision, {data}, {model}, {setting}."
        headings = tuple(_HEADINGS[key] for key in keys)
        grids.append(Grid(caption, headings, tuple(rows), tuple(notes)))
    sections = [f"## {markdown_escape(grid.caption)}\n\n{grid_markdown(grid)}" for grid in grids]
    unique = {id(study): study for group in groups.values() for study in group}.values()
    warnings = [line for study in unique for line in conflict_warnings(study, "averaged")]
    return Document(title, sections, [[grid] for grid in grids], columns, warnings)


def _with_values(cell: Summary, key: str) -> Summary:
    """The cell with another number of its counted evaluations as its values."""
    numbers = [run.counted_evaluations[run.statistics].get(key) for run in cell.counted]
    return replace(cell, values=tuple(float(n) for n in numbers if n is not None))
