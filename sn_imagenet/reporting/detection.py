"""Tables 3, 4 and 5: AP by the methods of backbone and heads, pretrained and from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sn_imagenet.reporting.cells import MISSING, method_label
from sn_imagenet.reporting.departures import departure_notes
from sn_imagenet.reporting.render import Document, Grid, Row, grid_markdown, markdown_escape
from sn_imagenet.reporting.study import RunCollection, Study, conflict_warnings, studies_of
from sn_imagenet.runs import Setting

TASK = "detection"
STARTS = {"pretrained": "", "scratch": ", from scratch"}  # rows of the task, and their labels
_HEADINGS = {
    "ap": "AP", "ap50": "AP.5", "ap75": "AP.75", "ap_l": "AP l", "ap_m": "AP m", "ap_s": "AP s",
    "mask_ap": "mask AP", "mask_ap50": "mask AP.5", "mask_ap75": "mask AP.75",
}  # fmt: skip


def detection_table(title: str, collection: RunCollection) -> Document:
    """Table 3 (Faster R-CNN C4), 4 (with FPN) or 5 (Mask R-CNN + FPN): a grid for each data set,
    setting, and model of the table or its mini version, the paper's data first."""
    published = collection.paper.detection[title.lower().replace(" ", "")]
    order = list(STARTS)
    groups: dict[tuple[str, str, Setting], list[Study]] = {}
    warnings: list[str] = []
    for study in sorted(studies_of(collection), key=lambda s: (s.data != "coco", s.data, s.model)):
        if study.task == TASK and study.model.removesuffix("_mini") == published["model"]:
            warnings += conflict_warnings(study, "averaged")
            for setting in study.settings:
                groups.setdefault((study.data, study.model, setting), []).append(study)
    grids = []
    for (data, model, setting), studies in groups.items():
        rows: list[Row] = []
        for study in sorted(studies, key=lambda s: (*order, s.row).index(s.row)):
            in_order = (*published.get(study.row, ()), *study.methods).index
            methods = [m for m in study.methods if study.cell(m, setting).runs]
            for position, method in enumerate(sorted(methods, key=in_order)):
                rule = bool(rows) and position == 0
                rows.append(_row(study, method, setting, published, rule))
                if paper := published.get(study.row, {}).get(method):
                    rows.append(Row("paper, COCO", list(map(str, paper)), indent=True))
        notes = ["Mean ± standard deviation (number of seeds), in percent. CSV has 95 % intervals."]
        if setting != Setting.parse(published["setting"]):
            notes.append(f"The paper's setting is {Setting.parse(published['setting'])}.")
        notes += [" ".join(note.split()) for note in published.get("notes", ())]
        notes += departure_notes([r for s in studies for r in s.runs if r.cell.setting == setting])
        headings = [_HEADINGS[key] for key in published["keys"]]
        grids.append(Grid(f"Average precision, {data}, {model}, {setting}.", headings, rows, notes))
    sections = [f"## {markdown_escape(grid.caption)}\n\n{grid_markdown(grid)}" for grid in grids]
    return Document(title, sections, [[grid] for grid in grids], warnings)


def _row(
    study: Study, method: str, setting: Setting, published: Mapping[str, Any], rule: bool
) -> Row:
    """The row of a cell; its rows of the CSV are one for each number."""
    cell, keys = study.cell(method, setting), published["keys"]
    paper = published.get(study.row, {}).get(method) or [None] * len(keys)
    of_row = {**study.columns, "setting": setting.name, "method": method}
    texts, csv = [], []
    for key, there in zip(keys, paper, strict=True):
        numbers = [run.counted_evaluations[run.statistics].get(key) for run in cell.counted]
        number = replace(cell, values=tuple(float(n) for n in numbers if n is not None))
        texts.append(MISSING if cell.values and not number.values else number.text())
        csv.append({**of_row, "number": key, **number.columns, "paper": there})
    label = method_label(method) + STARTS.get(study.row, f", {study.row}")
    return Row(label, texts, rule=rule, csv=csv)
