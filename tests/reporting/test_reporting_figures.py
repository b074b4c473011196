"""The figures: values of bars and curves, and the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from run_files import config, finished_run, result, weights, write_run, write_sweep

from sn_imagenet.reporting.figures.files import plot_run, seeds_with_weights, write_figures
from sn_imagenet.reporting.figures.learning import draw_figure2, draw_side_by_side, figure2, figure8
from sn_imagenet.reporting.figures.means import draw_figure1, figure1
from sn_imagenet.reporting.figures.style import COLORS
from sn_imagenet.reporting.figures.weights import draw_figure3, draw_figure4, figure3, figure4
from sn_imagenet.reporting.study import RunCollection, Study, studies_of
from sn_imagenet.runs import Run, Setting, find_runs, run_from_result

PNG, PDF = b"\x89PNG", b"%PDF"


def runs_of(root: Path) -> list[Run]:
    return find_runs(root).runs


def study_of(root: Path) -> Study:
    (study,) = studies_of(RunCollection(runs_of(root), root))
    return study


def seeds_of(root: Path) -> dict[Setting, Sequence[Run]]:
    warnings: list[str] = []
    seeds = seeds_with_weights(study_of(root), "sn", warnings)
    assert warnings == []
    return seeds


def bars(axes: Axes) -> dict[str, list[Any]]:
    """Label -> rectangles of the series."""
    return {
        str(series.get_label()): list(series)
        for series in axes.containers
        if isinstance(series, BarContainer)
    }


def is_image(file: Path) -> bool:
    start = PNG if file.suffix == ".png" else PDF
    return file.read_bytes().startswith(start) and file.stat().st_size > 5000


def test_figure3_stacks_the_weights_of_53_layers(tmp_path: Path) -> None:
    for batch in ("8x2", "8x32"):
        finished_run(tmp_path, 90.0, norm="sn", batch=batch)
    figure = draw_figure3(figure3(seeds_of(tmp_path)))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["(8,32): μ", "(8,32): σ", "(8,2): μ", "(8,2): σ"]
    expected = weights(["in", "ln", "bn"], seed=0)
    for axes, kind in zip(figure.axes, ("mean", "variance") * 2, strict=True):
        series = bars(axes)
        assert list(series) == ["IN", "LN", "BN"]
        heights = {m.lower(): [bar.get_height() for bar in column] for m, column in series.items()}
        for member, column in heights.items():
            np.testing.assert_allclose(column, [layer[kind][member] for layer in expected])
        total = np.sum(list(heights.values()), axis=0)
        np.testing.assert_allclose(total, np.ones(53))
        tops = [bar.get_y() + bar.get_height() for bar in series["BN"]]
        np.testing.assert_allclose(tops, np.ones(53))


def test_figure3_marks_stages_and_positions_as_the_paper_does(tmp_path: Path) -> None:
    finished_run(tmp_path, 90.0, norm="sn")
    axes = draw_figure3(figure3(seeds_of(tmp_path))).axes[0]
    assert [text.get_text() for text in axes.texts] == ["res1", "res2", "res3", "res4", "res5"]
    layers = weights(["in", "ln", "bn"])
    places = [layer["place"] for layer in layers]
    squares = next(line for line in axes.lines if line.get_marker() == "s")
    assert list(squares.get_xdata()) == [i for i, p in enumerate(places) if p == "shortcut"]
    separators = [line.get_xdata()[0] for line in axes.lines if line.get_marker() != "s"]
    assert separators == [0.5, 10.5, 23.5, 42.5]
    for place, bar in zip(places, bars(axes)["BN"], strict=True):
        is_flat = to_hex(bar.get_facecolor()) == COLORS["bn"]
        assert is_flat == (place != "3x3")
        assert (bar.get_hatch() is not None) == (place == "7x7")


def test_figure3_is_the_mean_over_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        finished_run(tmp_path, 90.0, norm="sn", seed=seed)
    written = [weights(["in", "ln", "bn"], seed=seed) for seed in range(3)]
    data = figure3(seeds_of(tmp_path))
    assert list(data.panels) == [f"(8,2): {symbol}, mean of 3 seeds" for symbol in "μσ"]
    for one, member in zip(list(data.panels.values())[1], ("in", "ln", "bn"), strict=True):
        means = np.mean([[w["variance"][member] for w in layers] for layers in written], axis=0)
        np.testing.assert_allclose(one.y, means)


def test_figure4_is_the_mean_over_layers(tmp_path: Path) -> None:
    for batch in ("8x1", "8x2", "8x32"):
        finished_run(tmp_path, 90.0, norm="sn", batch=batch)
    figure = draw_figure4(figure4(seeds_of(tmp_path)))
    mean_panel, variance_panel = figure.axes
    labels = [tick.get_text() for tick in variance_panel.get_xticklabels()]
    assert labels == ["(8,32)", "(8,2)", "(8,1)"]
    networks = [weights(["in", "ln", "bn"])] * 2 + [weights(["in", "ln"])]  # no BN at (8,1)
    for axes, kind in ((mean_panel, "mean"), (variance_panel, "variance")):
        for label, series in bars(axes).items():
            member = label.lower()
            of_layers = [[w[kind][member] for w in net if member in w[kind]] for net in networks]
            means = [np.mean(values) for values in of_layers if values]
            assert [bar.get_height() for bar in series] == pytest.approx(means)
            assert {to_hex(bar.get_facecolor()) for bar in series} == {COLORS[member]}


def test_files_of_one_run_and_of_a_small_network(tmp_path: Path) -> None:
    settings = config("sn")
    small = weights(["in", "ln", "bn", "gn"], blocks=(1, 1, 1, 1), stem="3x3")
    outcome = result(settings, importance_weights=small)
    paths = plot_run(run_from_result(outcome, tmp_path / "plots"))
    names = ["fig3.png", "fig3.pdf", "fig4.png", "fig4.pdf"]
    assert paths == [tmp_path / "plots" / name for name in names]
    assert all(map(is_image, paths))
    assert sorted((tmp_path / "plots").iterdir()) == sorted(paths)


def test_same_runs_same_files(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", ("8x2",), seeds=1)
    first, second = (write_figures(tmp_path / "runs", tmp_path / out) for out in "ab")
    assert [path.stem for path in first.paths[::3]] == [
        *("fig1", "fig2", "fig8", "weights", "fig3", "fig4")
    ]
    assert first.warnings == []
    for one, other in zip(first.paths, second.paths, strict=True):
        assert one.suffix == ".json" or is_image(one)
        assert one.read_bytes() == other.read_bytes()


def test_a_json_file_has_the_numbers_of_each_figure(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", ("8x2",), seeds=2)
    write_figures(tmp_path / "runs", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "fig4.json").read_text())
    assert (written["version"], written["ticks"]) == (2, ["(8,2)"])
    layers = [weights(["in", "ln", "bn"], seed) for seed in range(2)]
    for panel, kind in (("μ", "mean"), ("σ", "variance")):
        series = [one for one in written["series"] if one["panel"] == panel]
        assert [one["label"] for one in series] == ["IN", "LN", "BN"]
        for one, member in zip(series, ("in", "ln", "bn"), strict=True):
            seeds = [np.mean([layer[kind][member] for layer in network]) for network in layers]
            np.testing.assert_allclose(one["values"], [seeds], rtol=1e-5)
            np.testing.assert_allclose(one["y"], [np.mean(seeds)], rtol=1e-5)
            spread = np.std(seeds, ddof=1)
            np.testing.assert_allclose(one["high"], [np.mean(seeds) + spread], rtol=1e-5)
    curves = json.loads((tmp_path / "out" / "fig2.json").read_text())["series"]
    (training,) = [one for one in curves if one["label"] == "BN, training"]
    assert (training["seeds"], training["x"]) == (2, list(range(1, 11)))
    assert len(training["y"]) == len(training["low"]) == len(training["high"]) == 10


def test_an_unfinished_sweep_is_drawn_up_to_its_last_common_epoch(tmp_path: Path) -> None:
    write_sweep(tmp_path, ("8x32", "8x2"), partial=True)
    data = study_of(tmp_path)
    assert data.damaged == []
    axes = draw_figure1(figure1(data)).axes[0]
    drawn = {bar.get_label(): bar.lines[0] for bar in axes.containers}
    cells = {n: [data.cell(n, s).mean for s in data.settings] for n in data.methods}
    for norm, means in cells.items():
        shown = [mean for mean in means if mean is not None]
        np.testing.assert_allclose(list(map(float, drawn[norm.upper()].get_ydata())), shown)
    curves = draw_figure2(figure2(data)).axes[0].lines
    lengths = {len(line.get_xdata()) for line in curves}
    assert lengths == {4}  # where one seed stopped
    expected = np.mean(
        [curve[3].validation["batch_average"] for curve in data.curves_of("sn", Setting(8, 32))]
    )
    assert curves[0].get_ydata()[3] == pytest.approx(expected)
    assert [axes.get_title() for axes in draw_side_by_side(figure8(data)).axes] == [
        "(8,32)",
        "(8,2)",
    ]


@pytest.mark.parametrize(
    "row",
    [
        '{"kind": "epoch", "epoch": 1, "val": {"top1": 1e999}}',
        '{"kind": "epoch", "epoch": 1e999}',
        '{"kind": "train", "epoch": 1, "steps": 1, "top1": "5"}',
        "[" * 100_000,
    ],
)
def test_a_damaged_curve_gives_a_warning_and_hides_no_other(tmp_path: Path, row: str) -> None:
    write_sweep(tmp_path, ("8x2",), seeds=1)
    file = tmp_path / "digits/resnet50_mini/gn/8x2/seed0/metrics.jsonl"
    file.write_text(f"{row}\n")
    data = study_of(tmp_path)
    (warning,) = data.damaged
    assert "gn/8x2/seed0/metrics.jsonl, line 1: not a row of a run's metrics" in warning
    assert len(data.curves_of("bn", Setting(8, 2))[0]) == 10


def test_nothing_to_plot(tmp_path: Path) -> None:
    for outcome in (result(config("gn")), result(config("sn"), status="diverged")):
        assert plot_run(run_from_result(outcome, tmp_path / "plots")) == []
    assert not (tmp_path / "plots").exists()


def test_one_pair_of_files_for_each_data_and_model(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finished_run(runs, 90.0, norm="sn")
    finished_run(runs, 75.0, norm="sn", data="imagenet", model="resnet50")
    finished_run(runs, 90.0, norm="bn", data="cifar10")
    paths, warnings = write_figures(runs, tmp_path / "out")[:2]
    assert {path.name for path in paths if path.name.startswith(("fig3", "fig4"))} == {
        f"fig{i}_{pair}.{form}"
        for i in (3, 4)
        for pair in ("digits_resnet50_mini", "imagenet_resnet50")
        for form in ("png", "pdf", "json")
    }
    why = "no finished SN run with importance weights"
    assert f"cifar10, resnet50_mini: no fig3 and fig4: {why}" in warnings


def test_mixed_configs_are_left_out_with_a_warning(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finished_run(runs, 90.0, norm="sn", batch="8x32")
    finished_run(runs, 90.0, norm="sn", batch="8x2", seed=0)
    other = config("sn", "8x2", seed=1)
    other["trainer"]["epochs"] = 20
    write_run(runs, other, result(other))
    paths, warnings = write_figures(runs, tmp_path / "out")[:2]
    assert {"fig1.png", "fig3.png", "fig4.pdf"} <= {path.name for path in paths}
    (warning,) = [line for line in warnings if "not drawn" in line]
    assert "SN (8,2): not drawn" in warning and "trainer.epochs = 10 / 20" in warning


def test_layers_of_seeds_must_agree(tmp_path: Path) -> None:
    finished_run(tmp_path, 90.0, norm="sn", seed=0)
    other = config("sn", seed=1)
    small = weights(["in", "ln", "bn"], blocks=(1, 1, 1, 1))
    write_run(tmp_path, other, result(other, importance_weights=small))
    warnings: list[str] = []
    assert seeds_with_weights(study_of(tmp_path), "sn", warnings) == {}
    assert "SN (8,2): importance weights not drawn, the layers or members of" in warnings[0]
