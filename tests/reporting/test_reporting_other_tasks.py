"""Runs of a task other than classification, with a score without unit where lower is better."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_files import PAPER, config, csv_rows, finished_run, result, scored_result, write_run

from sn_imagenet.reporting.claims_report import write_claims
from sn_imagenet.reporting.curves import read_epochs, score_of_epochs
from sn_imagenet.reporting.figures.files import write_figures
from sn_imagenet.reporting.model_card import model_card
from sn_imagenet.reporting.page import repeat_command, write_page
from sn_imagenet.reporting.report import report_runs, run_tables
from sn_imagenet.reporting.study import RunCollection, studies_of
from sn_imagenet.reporting.tables import RUN_TABLES, write_tables
from sn_imagenet.runs import find_runs, run_from_result
from sn_imagenet.runs.scores import Score

SCORE = Score("error", "median error", "", higher_is_better=False)
ERRORS = {"bn": 0.0421, "frozen_bn+sn": 0.0312}


def of_task(norm: str, seed: int, row: str = "", batch: str = "8x2") -> dict[str, Any]:
    head = norm.partition("+")[2]
    run_config = config(norm.partition("+")[0], batch, seed)
    run_config["norm"] |= {"test_statistics": "moving_average"}
    run_config["norm"] |= {"head": {"name": head, "args": {}}} if head else {}
    run_config["task"] = {"name": "regression", "target": "mine.Regression"}
    run_config["task"] |= {"row": row} if row else {}
    run_config["run_dir"] = f"runs/digits/resnet50_mini/regression{row}/{norm}/{batch}/seed{seed}"
    return run_config


def outcome_of(run_config: dict[str, Any], norm: str, error: float) -> dict[str, Any]:
    numbers = {"error": error, "worst": 1.5, "points": 400, "curve": [1, 2]}
    row = run_config["task"].get("row", "")
    return scored_result(run_config, SCORE, numbers, norm=norm, row=row)


def metrics_of(error: float, by_step: bool = False) -> str:
    rows: list[dict[str, Any]] = []
    for epoch in range(1, 4):
        rows.append({"kind": "train", "epoch": epoch, "step": 10 * epoch, "steps": 10, "loss": 0.1})
        val = {"error": error * (1 + 1 / epoch), "statistics": "moving_average"}
        row = {"step": 10 * epoch, "val": val, "score": SCORE.to_dict()}
        names = {"kind": "epoch", "epoch": epoch, "epochs": 3}
        rows.append({**({"kind": "validation"} if by_step else names), **row})
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_task(root: Path, row: str = "", by_step: bool = False) -> None:
    for norm, error in ERRORS.items():
        for seed in range(3):
            run_config = of_task(norm, seed, row)
            run_config["trainer"] |= {"validate_every": 10} if by_step else {}
            outcome = outcome_of(run_config, norm, error + 0.001 * seed)
            write_run(root, run_config, outcome, metrics=metrics_of(error, by_step))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs of regression, one of them not validated yet, beside one of classification."""
    write_task(tmp_path / "runs")
    write_run(tmp_path / "runs", of_task("bn", 3))
    finished_run(tmp_path / "runs", 90.0)
    return tmp_path / "runs"


def test_a_study_has_the_runs_of_one_task_and_row(runs: Path) -> None:
    write_task(runs, "scratch")
    studies = studies_of(RunCollection(find_runs(runs).runs, runs))
    assert [(study.title, len(study.runs)) for study in studies] == [
        ("digits, resnet50_mini", 1),
        ("digits, resnet50_mini, regression, median error", 7),
        ("digits, resnet50_mini, scratch, regression, median error", 6),
    ]
    assert [study.score.key for study in studies] == ["top1", "error", "error"]
    assert studies[1].methods == ["bn", "frozen_bn+sn"]


def test_a_task_without_a_validated_run_has_a_score_without_a_name(tmp_path: Path) -> None:
    write_run(tmp_path, of_task("bn", 0))
    (study,) = studies_of(RunCollection(find_runs(tmp_path).runs, tmp_path))
    assert (study.score.label, study.is_classification) == ("score", False)


def test_tables_are_in_the_scores_direction_and_digits(runs: Path, tmp_path: Path) -> None:
    for name in RUN_TABLES:
        write_tables(runs, tmp_path / name, PAPER, [name])
    table = (tmp_path / "table2" / "table2.md").read_text()
    classification, regression = table.split("## digits, resnet50_mini, regression")
    assert "Top-1 (%) on the validation set of digits, resnet50_mini, by" in classification
    assert "GN" in classification
    caption = "Median error on digits, resnet50_mini, by (GPUs, samples per GPU); lower is better."
    assert caption in regression
    assert "GN" not in regression and "aper" not in regression.split("###")[1]
    rows = [line for line in regression.splitlines() if line.startswith("|")]
    assert rows[0].split("|")[2].strip() == "(8,2)"
    assert "0.04310 ± 0.00100 (3 of 4; 1 interrupted 0/10)" in rows[2]
    assert "**0.03220 ± 0.00100 (3)**" in rows[4] and "BN frozen + SN" in rows[4]
    assert "BN frozen + SN - BN" in rows[6] and "-0.01090" in rows[6]
    assert "Score of a run: the evaluation after the last epoch." in regression
    entries = csv_rows(tmp_path / "table2" / "table2.csv", "task", "score", "method", "setting")
    assert {key[:2] for key in entries} == {("", "top1"), ("regression", "error")}
    ours = entries["regression", "error", "frozen_bn+sn", "8x2"]
    assert (float(ours["mean"]), ours["paper"]) == (pytest.approx(0.0322), "")


def test_the_best_epoch_is_the_lowest(runs: Path) -> None:
    run = next(run for run in find_runs(runs).runs if run.cell.norm == "frozen_bn+sn")
    assert score_of_epochs(run, "best") == pytest.approx(0.0312 * 4 / 3)
    assert score_of_epochs(run, "median5") == pytest.approx(0.0312 * 3 / 2)


def test_figures_show_the_score(runs: Path, tmp_path: Path) -> None:
    written = write_figures(runs, tmp_path / "out")
    name = "digits_resnet50_mini_regression_median-error"
    names = {path.name for path in written.paths}
    assert {f"fig1_{name}.png", f"fig2_{name}.json", "fig1_digits_resnet50_mini.png"} <= names
    figure = json.loads((tmp_path / "out" / f"fig1_{name}.json").read_text())
    assert (figure["y"], figure["lower_is_better"]) == ("median error", True)
    assert {one["label"]: one["values"] for one in figure["series"]} == {
        "BN": [[0.0421, 0.0431, 0.0441]],
        "BN frozen + SN": [[0.0312, 0.0322, 0.0332]],
    }
    curves = json.loads((tmp_path / "out" / f"fig2_{name}.json").read_text())
    (curve,) = [s for s in curves["series"] if s["panel"][:3] == "(b)" and s["label"] == "BN"]
    assert (curves["x"], curve["x"], curve["seeds"]) == ("epoch", [1, 2, 3], 3)
    assert curve["y"] == pytest.approx([0.0842, 0.06315, 0.0561333], rel=1e-5)


def test_validations_at_an_interval_in_steps_are_drawn_by_step(tmp_path: Path) -> None:
    write_task(tmp_path / "runs", by_step=True)
    epochs = read_epochs(find_runs(tmp_path / "runs").runs[0])
    assert [(epoch.number, epoch.train) for epoch in epochs] == [(10, None), (20, None), (30, None)]
    write_figures(tmp_path / "runs", tmp_path / "out")
    curves = json.loads((tmp_path / "out" / "fig2.json").read_text())
    assert (curves["x"], curves["series"][0]["x"]) == ("step", [10, 20, 30])


def test_the_paper_makes_no_claims_on_another_task(runs: Path, tmp_path: Path) -> None:
    files = write_claims(runs, tmp_path / "both", PAPER)
    content = json.loads(files.paths[0].read_text())
    assert len(content["claims"]) == 12
    nothing = (
        "No claims are stated about the task of digits, resnet50_mini, regression, median error."
    )
    assert nothing in files.text and nothing in files.paths[1].read_text()
    write_task(tmp_path / "alone")
    files = write_claims(tmp_path / "alone", tmp_path / "none", PAPER)
    assert json.loads(files.paths[0].read_text())["claims"] == []
    assert nothing in files.text and nothing in files.brief


def test_the_page_has_tables_figures_and_runs_without_claims(runs: Path, tmp_path: Path) -> None:
    page = write_page(runs, tmp_path / "out", PAPER)
    html = page.paths[0].read_text()
    assert (
        "No claims are stated about the task of digits, resnet50_mini, regression, median error."
        in html
    )
    assert html.count('class="claim ') == 12
    assert "Median error on digits, resnet50_mini" in html
    assert "Fig. 1: median error by setting" in html and "Fig. 1: top-1 by setting" in html
    assert "moving average (used in the table): statistics moving_average, " in html
    assert '<button type="button">score</button>' in html
    assert "<td>0.0312</td>" in html and "<td>90.00</td>" in html


def test_the_command_names_the_task_and_the_method_of_the_heads(runs: Path) -> None:
    run = next(run for run in find_runs(runs).runs if run.cell.norm == "frozen_bn+sn")
    command = repeat_command(run).split()
    assert {"norm=frozen_bn", "norm.head=sn", "task=regression"} <= set(command)
    assert "'++task.target='" in repeat_command(run) and "norm.head.args" not in repeat_command(run)


def test_the_card_of_an_export_has_the_score(runs: Path) -> None:
    run = next(run for run in find_runs(runs).runs if run.cell.norm == "frozen_bn+sn")
    card = model_card(run, architecture="mlp", statistics="moving_average", loading=(), files={})
    assert re.search(r"\| moving average +\| +0.0312 \|", card)
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["regression"] and "pipeline_tag" not in front
    assert "One run of task `regression`" in card


def test_the_table_of_a_run_has_all_its_numbers(tmp_path: Path) -> None:
    other = of_task("frozen_bn+sn", 0, "scratch")
    outcome = outcome_of(other, "frozen_bn+sn", 0.0312)
    classification = result(config())
    results = {"a": outcome, "b": classification}
    pair = [run_from_result(one, tmp_path / name) for name, one in results.items()]
    report_runs(pair)
    assert (tmp_path / "b" / "top1.md").exists()
    head, _, row = (tmp_path / "a" / "score.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)]
    assert dict(zip(*cells, strict=True)) == {
        **{"data": "digits", "model": "resnet50_mini, scratch", "norm": "BN frozen + SN"},
        **{"setting": "(8,2)", "seed": "0", "statistics": "moving average"},
        **{"median error": "0.0312", "worst": "1.5", "points": "400"},
    }
    both = run_tables(pair)
    assert both.splitlines()[0] == head and "top-1" in both
    failed = {**outcome, "status": "failed", "evaluations": []}
    assert "median error" in run_tables([run_from_result(failed, tmp_path)])
