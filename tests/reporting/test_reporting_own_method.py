"""One's own normalization method beside the paper's: differences, verdicts, names, labels."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from run_files import PAPER, config, csv_rows, epoch_rows, markdown_of, result, write_run
from scipy import stats

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.claims_report import write_claims
from sn_imagenet.reporting.figures.files import draw_study, write_figures
from sn_imagenet.reporting.figures.style import STYLE
from sn_imagenet.reporting.page import write_page
from sn_imagenet.reporting.study import RunCollection, studies_of
from sn_imagenet.reporting.tables import write_tables

VALUES = {
    "bn": [70.0, 71.5, 70.2],
    "gn": [75.0, 74.0, 74.4],
    "sn": [73.0, 74.0, 74.4],
    "half": [76.0, 77.0, 76.4],
}
NINE = ("8x32", "8x16", "8x8", "8x4", "8x2", "1x16", "1x32", "8x1", "1x8")


def write(root: Path, norm: str, seed: int, value: float, batch: str = "8x2") -> None:
    settings = config(norm, batch, seed)
    if norm == "half":
        settings["norm"]["label"] = "Half & half"
    write_run(root, settings, result(settings, value), metrics=epoch_rows(settings, 3, True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "runs"
    for norm, values in VALUES.items():
        for seed, value in enumerate(values):
            write(root, norm, seed, value)
    return root


def test_it_is_compared_with_every_other_method_in_all_formats(runs: Path, tmp_path: Path) -> None:
    written = write_tables(runs, tmp_path, PAPER, ["table2"], settings=["8x2"])
    rows = [line.split("|")[1:3] for line in markdown_of(written).splitlines() if "|" in line]
    table = [(label.strip(), text.strip()) for label, text in rows]
    for norm in ("bn", "gn", "sn"):
        gap = np.mean(VALUES["half"]) - np.mean(VALUES[norm])
        i = table.index((f"Half & half-{norm.upper()}", f"{gap:+.1f}"))
        welch = stats.ttest_ind(VALUES["half"], VALUES[norm], equal_var=False)
        low, high = welch.confidence_interval()
        assert table[i + 1] == ("– 95 % interval", f"[{low:.1f}, {high:.1f}]")
    assert r"Half \& half-SN & " in (tmp_path / "table2.tex").read_text()
    tidy = csv_rows(tmp_path / "table2.csv", "method")
    assert {"half", "half-bn", "half-gn", "half-sn", "sn-bn"} <= tidy.keys()
    html = write_page(runs, tmp_path, PAPER).paths[0].read_text()
    assert "Half &amp; half-SN" in html


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"against": ["bn", "gn"]}, ["gn-bn", "sn-bn", "half-bn", "sn-gn", "half-gn"]),
        ({"methods": ["half", "sn"]}, ["sn-half"]),
        ({"methods": ["sn", "half"]}, ["half-sn"]),
        ({"methods": ["bn", "sn"]}, ["sn-bn"]),
    ],
)
def test_methods_to_show_and_to_compare_with(
    runs: Path, tmp_path: Path, options: dict[str, list[str]], names: list[str]
) -> None:
    write_tables(runs, tmp_path, PAPER, ["table2"], **options)
    methods = list(csv_rows(tmp_path / "table2.csv", "method"))
    shown = options.get("methods") or ["bn", "gn", "sn", "half"]
    assert methods[: len(shown)] == shown
    if options != {"methods": ["half", "sn"]}:  # its pairs: the one's own method minus the other
        assert methods[len(shown) :] == names


def test_a_method_without_runs_is_refused_by_name(runs: Path, tmp_path: Path) -> None:
    for option in ("methods", "against"):
        with pytest.raises(UserError, match="method 'hlaf': expected one of the runs': bn, gn, ha"):
            write_figures(runs, tmp_path, **{option: ["sn", "hlaf"]})


def test_its_verdicts(runs: Path, tmp_path: Path) -> None:
    written = write_claims(runs, tmp_path, PAPER, against=["gn"])
    content = json.loads(written.paths[0].read_text())
    (entry,) = content["methods"]
    assert entry["claim"] == "Half & half is at least as good as GN in every setting of both."
    assert (entry["verdict"], entry["decided_by"]) == ("holds", "Half & half - GN (8,2)")
    assert entry["seeds"] == {"Half & half (8,2)": 3, "GN (8,2)": 3}
    assert "Your own methods on digits, resnet50_mini:\nHOLDS          1. Half &" in written.text
    assert len(content["claims"]) == 12


def outside(figure: Figure) -> list[str]:
    """The texts that are drawn, in part, outside the page."""
    FigureCanvasAgg(figure).draw()
    page = figure.bbox.padded(0.5)
    hidden = {
        tick.label1  # beyond the end of its axis
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = {text: text.get_window_extent() for text in texts if text not in hidden}
    assert len(boxes) > 2
    return [
        t.get_text()
        for t, b in boxes.items()
        if not (page.contains(*b.p0) and page.contains(*b.p1))
    ]


@pytest.mark.parametrize(
    ("methods", "settings"),
    [(1, 1), (2, 9), (3, 4), (4, 2), (4, 3), (5, 5), (6, 6), (7, 7), (8, 1), (8, 8), (8, 9)],
)
def test_no_text_is_outside_the_page(tmp_path: Path, methods: int, settings: int) -> None:
    norms = ("sn", "bn", "gn", "in", "ln", "brn", "my_own_normalization", "another_one")[:methods]
    for i, (norm, batch) in enumerate(itertools.product(norms, NINE[:settings])):
        for seed in range(2 if i == 0 else 1):
            write(tmp_path, norm, seed, 60.0 + i % 37, batch)
    (study,) = studies_of(RunCollection.read(tmp_path)[0])
    drawn = []
    with rc_context(STYLE):
        for figure in draw_study(study, []):
            if figure.drawn:
                drawn.append(figure.name)
                assert outside(figure.drawn[0]) == [], figure.name
    assert drawn == ["fig1", "fig2", "fig8", "weights", "fig3", "fig4"]
