"""Architecture search: Fig. 6(b), the picture of the cells, the table, and the claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Annotation, Text
from run_files import PAPER, config, result, scored_result, write_run

from sn_imagenet.reporting.claims_report import write_claims
from sn_imagenet.reporting.figures.cells import draw_cells
from sn_imagenet.reporting.figures.files import plot_run, write_figures
from sn_imagenet.reporting.tables import write_tables
from sn_imagenet.runs import run_from_result
from sn_imagenet.runs.scores import Score

SCORE = Score("val_accuracy", "validation accuracy", "%")
ARCHITECTURE = {
    "normal": [[0, "sep3x3", 1, "identity"], [2, "max3x3", 2, "sep5x5"]],
    "reduction": [[1, "avg3x3", 1, "sep3x3"], [0, "identity", 2, "sep3x3"]],
}
ACCURACY = {"sn": 40.0, "ln": 35.0, "gn": 41.0, "none": 30.0, "random": 30.0}


def of_search(norm: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and result of a search; SN's weight of LN is 0.6."""
    searched = config(norm, "1x32", seed, model="cell")
    searched["task"] = {"name": "architecture_search", "target": "t"}
    searched["norm"] |= {"test_statistics": "sample", "args": {}}
    value = ACCURACY[norm] + 0.1 * seed
    numbers = {"val_accuracy": value, "best_val_accuracy": value + 5, "test_accuracy": value}
    numbers |= {"architecture": ARCHITECTURE}
    weights = {"ln": 0.6 + 0.01 * seed, "gn": 0.4 - 0.01 * seed}
    layer = {"name": "policy.norm_input", "stage": "", "place": "", "mean": weights}
    importance = [{**layer, "variance": weights}] if norm == "sn" else None
    return searched, scored_result(searched, SCORE, numbers, importance)


def of_scratch(norm: str, seed: int, top1: float) -> tuple[dict[str, Any], dict[str, Any]]:
    trained = config("bn", "1x32", seed, model="cell")
    trained["model"]["args"] = {"architecture": {**ARCHITECTURE, "normal": [[seed]]}}
    trained["task"] = {"name": "classification", "target": "t", "row": norm}
    trained["run_dir"] = f"runs/digits/cell-{norm}/bn/1x32/seed{seed}"
    outcome = result(trained, top1)
    outcome["cell"]["row"] = norm
    return trained, outcome


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for norm, accuracy in ACCURACY.items():
        for seed in range(3):
            rows = [
                {"kind": "epoch", "epoch": e, "epochs": 3, "step": 10 * e, "score": SCORE.to_dict(),
                 "val": {"val_accuracy": accuracy + e + seed, "statistics": "sample"}}
                for e in (1, 2, 3)
            ]  # fmt: skip
            metrics = "".join(json.dumps(row) + "\n" for row in rows)
            write_run(tmp_path / "runs", *of_search(norm, seed), metrics=metrics)
    for norm, top1 in (("sn", 80.0), ("random", 85.0)):
        for seed in range(3):
            write_run(tmp_path / "runs", *of_scratch(norm, seed, top1 + 0.5 * seed))
    return tmp_path / "runs"


def test_fig_6b_has_a_curve_and_a_band_for_each_method(runs: Path, tmp_path: Path) -> None:
    written = write_figures(runs, tmp_path / "out")
    # None of the networks from scratch, whose study would add its title to the names.
    assert {path.stem for path in written.paths} == {"fig1", "fig2", "fig3", "fig4", "fig6b"}
    (file,) = (tmp_path / "out").glob("fig6b*.json")
    figure = json.loads(file.read_text())
    assert (figure["x"], figure["y"]) == ("epoch", "validation accuracy (%)")
    curves = {one["label"]: one for one in figure["series"]}
    assert curves.keys() == {"SN", "LN", "GN", "none", "random"}
    assert curves["SN"]["y"] == [42, 43, 44] and curves["SN"]["seeds"] == 3
    assert curves["random"]["low"] == pytest.approx([31, 32, 33])


def test_the_claims_are_judged_and_those_of_classification_are_not(
    runs: Path, tmp_path: Path
) -> None:
    files = write_claims(runs, tmp_path / "out", PAPER)
    content = json.loads(files.paths[0].read_text())
    verdicts = {entry["number"]: entry["verdict"] for entry in content["claims"]}
    # SN is above LN but below GN; GN, LN and SN are above none; SN above random, but not from
    # scratch.
    assert verdicts == {
        **{1: "does not hold", 2: "holds", 3: "holds", 4: "holds", 5: "does not hold"}
    }
    scratch = content["claims"][4]
    assert scratch["effect"] == pytest.approx(-5)
    assert (scratch["unit"], scratch["source"]) == ("points of top-1", "not in the paper")
    assert content["claims"][0]["unit"] == "points of validation accuracy"
    assert content["claims"][1]["effect"] == pytest.approx(0.22)
    assert "Claims on digits, cell, architecture_search" in files.text
    title = "digits, cell, found and trained from scratch"
    assert f"No claims are stated about the task of {title}" in files.text


def test_networks_from_scratch_share_a_table_by_the_method_of_their_search(
    runs: Path, tmp_path: Path
) -> None:
    text = write_tables(runs, tmp_path / "out", PAPER, only=["table2"]).text
    table = text[text.index("trained from scratch") :]
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table.splitlines()
            if line.startswith("|")}  # fmt: skip
    assert rows["SN"] == "80.5 ± 0.5 (3)" and rows["random"] == "**85.5 ± 0.5 (3)**"
    assert rows["random-SN"] == "+5.0" and "BN" not in rows


def test_a_search_leaves_its_architecture_as_file_and_picture(tmp_path: Path) -> None:
    _, outcome = of_search("sn", 0)
    names = [path.name for path in plot_run(run_from_result(outcome, tmp_path))]
    assert names[:3] == ["architecture.json", "cells.png", "cells.pdf"] and "fig3.png" in names
    assert json.loads((tmp_path / "architecture.json").read_text()) == ARCHITECTURE
    failed = {**outcome, "status": "failed", "evaluations": []}
    assert plot_run(run_from_result(failed, tmp_path)) == []


def test_the_picture_has_all_blocks_operations_and_outputs() -> None:
    figure = draw_cells(ARCHITECTURE)
    for axes, (name, outputs) in zip(
        figure.axes, {"normal": 1, "reduction": 1}.items(), strict=True
    ):
        texts = [t.get_text() for t in axes.texts if type(t) is Text]
        operations = [op for _, a, _, b in ARCHITECTURE[name] for op in (a, b)]
        assert sorted(texts) == sorted(["k-2", "k-1", "2", "3", "out", *operations])
        arrows = [one for one in axes.texts if isinstance(one, Annotation)]
        assert len(arrows) == 4 + outputs
        assert axes.get_title() == f"{name} cell"
