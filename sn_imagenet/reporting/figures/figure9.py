"""Fig. 9: content, style, and what the networks of each method make of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from sn_imagenet.reporting.cells import method_label
from sn_imagenet.reporting.figures.series import VERSION, FigureData
from sn_imagenet.reporting.figures.style import PAGE
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import Run

_STYLIZED = "stylized"  # the folder in a run, by scripts/stylize.py
_ORDER = ("in", "sn")  # as in the paper, then the others


@dataclass(frozen=True)
class Pictures(FigureData):
    """``files``: in each row the files of its pictures, below the titles ``ticks``."""

    files: tuple[tuple[Path, ...], ...] = ()

    def to_json(self) -> str:
        rows = [[file.name for file in row[:1]] for row in self.files]
        content = {"version": VERSION, "columns": list(self.ticks), "rows": rows}
        return json.dumps(content, ensure_ascii=False) + "\n"


def figure9(study: Study) -> Pictures | None:
    """A row for each content image that all methods have stylized, each by the first of its runs
    with a folder of them; None without any."""
    runs: dict[str, Run] = {}
    for (norm, _), cell in study.drawn.items():
        stylized = [run for run in cell.runs if (run.path / _STYLIZED).is_dir()]
        if stylized:
            runs[norm] = stylized[0]
    methods = sorted(runs, key=lambda norm: (*(norm != first for first in _ORDER), norm))
    if not methods:
        return None
    folders = [runs[norm].path / _STYLIZED for norm in methods]
    files = []
    for content in sorted((folders[0] / "content").rglob("*.png")):
        name = content.relative_to(folders[0] / "content")
        row = [content, folders[0] / "style.png", *(folder / name for folder in folders)]
        if all(file.is_file() for file in row):
            files.append(tuple(row))
    titles = ["content", "style", *map(method_label, methods)]
    return Pictures("", "", {}, titles, files=tuple(files)) if files else None


def draw_figure9(data: FigureData) -> Figure:
    """Draw the pictures in rows."""
    assert isinstance(data, Pictures)
    height = PAGE / len(data.ticks) * 0.72 * len(data.files) + 0.2
    figure = Figure(figsize=(PAGE, height))
    grid = figure.subplots(len(data.files), len(data.ticks), squeeze=False)
    for axes_row, row in zip(grid, data.files, strict=True):
        for axes, title, file in zip(axes_row, data.ticks, row, strict=True):
            axes.imshow(imread(file))
            axes.set_axis_off()
            if row is data.files[0]:
                axes.set_title(title)
    figure.tight_layout(pad=0.2)
    return figure
