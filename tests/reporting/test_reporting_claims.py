"""Verdicts: the rules on made-up runs with known answers, claims.json and the printed lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_files import REPOSITORY, config, finished_seeds, result, write_run
from scipy import stats

from sn_imagenet.reporting.claims_report import judge_claims, write_claims
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.study import RunCollection
from sn_imagenet.reporting.verdict import Comparison, judge
from sn_imagenet.runs import find_runs

PAPER = REPOSITORY / "results" / "paper.yaml"
IMAGENET = {"data": "imagenet", "model": "resnet50"}
NINE = ("8x32", "8x16", "8x8", "8x4", "8x2", "1x16", "1x32", "8x1", "1x8")


def claims(root: Path, data: str = "imagenet") -> dict[int, dict[str, Any]]:
    written = write_claims(root, root.parent / "out", PAPER)
    content = json.loads(written.paths[0].read_text())
    for entry in content["claims"]:
        assert entry["verdict"] in ("holds", "does not hold", "undecided", "not tested")
        assert entry["data"]
    return {e["number"]: e for e in content["claims"] if e["data"] == data}


def around(mean: float) -> list[float]:
    return [mean - 0.01, mean, mean + 0.01]


@pytest.mark.slow
def test_the_papers_numbers_with_a_small_spread_support_its_claims(tmp_path: Path) -> None:
    paper = read_paper(PAPER)
    for (method, setting), entry in paper.cells.items():
        if method == "bkn" or entry.by != "paper":
            continue
        batch = setting.name
        if entry.top1 is None:
            for seed in range(3):
                settings = config(method, batch, seed, **IMAGENET)
                write_run(tmp_path / "runs", settings, result(settings, status="diverged"))
        else:
            finished_seeds(tmp_path / "runs", method, batch, around(entry.top1), **IMAGENET)
    entries = claims(tmp_path / "runs")
    verdicts = {number: entry["verdict"] for number, entry in entries.items()}
    assert {n for n, verdict in verdicts.items() if verdict == "holds"} >= {1, 2, 3, 5, 10, 11, 12}
    assert entries[1]["settings"] == [s for s in NINE if s != "8x1"]
    assert verdicts[4] == "undecided"  # 76.0 at (8,8) and 75.5 at (8,1) differ by 0.5 exactly
    assert verdicts[6] == "undecided"  # 76.2 and 76.4: exactly at the threshold
    (left_out,) = [c for c in entries[1]["comparisons"] if c["verdict"] == "not tested"]
    assert left_out["not_tested_because"] == "BN (8,1): 3 of 3 seeds diverged"
    assert entries[5]["counted"] == "seeds that failed: BN 3 of 3, GN 0 of 3, SN 0 of 3"
    assert entries[12]["counted"] == "importance weights: 318 in 53 layers"


def test_the_numbers_of_a_comparison(tmp_path: Path) -> None:
    bn, sn = [70.0, 71.5, 70.2], [73.0, 74.0, 74.4]
    finished_seeds(tmp_path / "runs", "bn", "8x2", bn)
    finished_seeds(tmp_path / "runs", "sn", "8x2", sn)
    entry = claims(tmp_path / "runs", "digits")[1]
    expected = stats.ttest_ind(sn, bn, equal_var=False).confidence_interval(0.95)
    assert entry["verdict"] == "holds"
    assert entry["decided_by"] == "SN-BN (8,2)"
    assert entry["effect"] == pytest.approx(np.mean(sn) - np.mean(bn))
    assert entry["interval"] == pytest.approx([expected.low, expected.high])
    assert entry["margin"] == pytest.approx(expected.low)
    assert entry["seeds"] == {"SN (8,2)": 3, "BN (8,2)": 3}
    assert entry["settings"] == ["8x2"]
    assert len(entry["runs"]) == 6
    assert entry["test"] == "Welch's t interval over seeds"
    low, high = entry["validation_interval"]
    assert low < 0 < entry["effect"] < high  # 400 images: wider than the seeds' own


@pytest.mark.parametrize(
    ("sn", "verdict"),
    [
        ([73.0, 74.0, 74.4], "holds"),
        ([67.0, 68.0, 67.4], "does not hold"),
        ([69.0, 74.0, 71.0], "undecided"),
        ([73.0, 74.0], "not tested"),
        ([70.5], "not tested"),
    ],
)
def test_each_verdict(tmp_path: Path, sn: list[float], verdict: str) -> None:
    finished_seeds(tmp_path / "runs", "bn", "8x2", [70.0, 71.5, 70.2])
    finished_seeds(tmp_path / "runs", "sn", "8x2", sn)
    assert claims(tmp_path / "runs", "digits")[1]["verdict"] == verdict


def test_seeds_without_spread_decide_nothing(tmp_path: Path) -> None:
    finished_seeds(tmp_path / "runs", "bn", "8x2", [70.0] * 3)
    finished_seeds(tmp_path / "runs", "sn", "8x2", [80.0] * 3)
    entry = claims(tmp_path / "runs", "digits")[1]
    assert (entry["verdict"], entry["effect"], entry["interval"]) == ("undecided", 10.0, None)


def test_holm_makes_several_settings_harder_than_one(tmp_path: Path) -> None:
    bn, sn = [70.0, 70.4, 70.8], [70.95, 71.35, 71.75]
    assert 0.025 < stats.ttest_ind(bn, sn, equal_var=False).pvalue < 0.05
    finished_seeds(tmp_path / "one", "bn", "8x2", bn)
    finished_seeds(tmp_path / "one", "sn", "8x2", sn)
    assert claims(tmp_path / "one", "digits")[1]["verdict"] == "holds"
    for batch in ("8x2", "8x8"):
        finished_seeds(tmp_path / "two", "bn", batch, bn)
        finished_seeds(tmp_path / "two", "sn", batch, sn)
    entry = claims(tmp_path / "two", "digits")[1]
    assert (entry["verdict"], entry["settings"]) == ("undecided", ["8x8", "8x2"])


def test_diverged_seeds_and_different_configs_are_not_tested(tmp_path: Path) -> None:
    finished_seeds(tmp_path / "runs", "bn", "8x2", [70.0, 71.0, 70.5])
    finished_seeds(tmp_path / "runs", "sn", "8x2", [80.0, 81.0, 80.5])
    lost = config("bn", "8x2", seed=3)
    write_run(tmp_path / "runs", lost, result(lost, status="diverged"))
    for seed, value in enumerate([60.0, 61.0, 60.5]):
        settings = config("gn", "8x2", seed)
        settings["protocol"]["dropout"] = 0.5
        write_run(tmp_path / "runs", settings, result(settings, value))
    entries = claims(tmp_path / "runs", "digits")
    assert (entries[1]["verdict"], entries[2]["verdict"]) == ("not tested", "not tested")
    why = [c["not_tested_because"] for c in entries[1]["comparisons"] if c["settings"] == ["8x2"]]
    assert why == ["BN (8,2): 1 of 4 seeds diverged"]
    why = [c["not_tested_because"] for c in entries[2]["comparisons"] if c["settings"] == ["8x2"]]
    assert why == ["the two cells differ in protocol.dropout = absent / 0.5"]


def test_imagenets_thresholds_are_not_applied_elsewhere(tmp_path: Path) -> None:
    finished_seeds(tmp_path / "runs", "bn", "8x32", [90.0, 91.0, 90.5])
    finished_seeds(tmp_path / "runs", "bn", "8x2", [60.0, 61.0, 60.2])
    written = write_claims(tmp_path / "runs", tmp_path / "out", PAPER)
    entry = claims(tmp_path / "runs", "digits")[3]
    assert entry["verdict"] == "not tested"
    assert entry["effect"] == pytest.approx(30.1)
    assert entry["threshold"] == "≥ 10"
    assert "threshold is for ImageNet" in entry["comparisons"][0]["not_tested_because"]
    lines = written.text.splitlines()
    assert lines[0] == "The paper's claims on digits, resnet50_mini:"
    assert max(map(len, lines)) <= 110
    assert [int(line[14:16]) for line in lines[1:13]] == list(range(1, 13))
    assert "No run here is of ImageNet, ResNet-50" in written.text
    details = written.paths[1].read_text()
    assert details.count("[digits]") == 12
    assert "threshold is for ImageNet" in details


def sn_run(
    root: Path, batch: str, seed: int, bn: tuple[float, float], curve: list[tuple[float, float]]
) -> None:
    """A run whose weights of BN are ``bn`` (μ, σ) in each layer, 0.1 less in res5."""
    settings = config("sn", batch, seed)
    outcome = result(settings, 90.0, 89.95)
    for layer in outcome["importance_weights"]:
        less = 0.1 if layer["stage"] == "res5" else 0.05 if layer["place"] == "3x3" else 0.0
        for table, value in zip(("mean", "variance"), bn, strict=True):
            share = value - less + 0.001 * seed
            layer[table] = {"in": 0.2, "ln": 0.8 - share, "bn": share}
    rows = [
        {
            "kind": "epoch",
            "epoch": number,
            "epochs": len(curve),
            "val": {"top1": moving, "statistics": "moving_average"},
            "calibrated": {"top1": batch_average},
        }
        for number, (moving, batch_average) in enumerate(curve, start=1)
    ]
    write_run(root, settings, outcome, metrics="".join(json.dumps(row) + "\n" for row in rows))


def test_importance_weights_and_averages(tmp_path: Path) -> None:
    for i, batch in enumerate(("8x32", "8x8", "8x2")):
        for seed in range(3):
            curve = [(10.0, 50), (40.0, 60), (30.0, 66), (70.0 + seed, 71)]
            sn_run(tmp_path / "runs", batch, seed, (0.6 - 0.1 * i, 0.5 - 0.1 * i), curve)
    entries = claims(tmp_path / "runs", "digits")
    seven = entries[7]
    assert (seven["verdict"], seven["settings"]) == ("holds", ["8x32", "8x8", "8x2"])
    slope = seven["comparisons"][0]["effect"]
    assert slope == pytest.approx(0.05)  # 0.1 for each four times as many samples
    assert seven["comparisons"][1]["effect"] == pytest.approx(-0.05)
    last = [c for c in entries[8]["comparisons"] if "res5, σ" in c["name"]]
    assert [c["verdict"] for c in last] == ["undecided"] * 3  # no spread over seeds
    assert last[0]["effect"] == pytest.approx(-0.1)
    nine = entries[9]["comparisons"]
    changes = [c for c in nine if "change per epoch" in c["name"]]
    moving = np.mean([(30 + 10 + 40 + seed) / 3 for seed in range(3)])
    assert changes[0]["effect"] == pytest.approx(moving - 21 / 3)
    assert {c["verdict"] for c in changes} == {"holds"}
    assert entries[9]["verdict"] == "not tested"  # the other half has a threshold for ImageNet


def test_no_two_studies_are_mixed(tmp_path: Path) -> None:
    finished_seeds(tmp_path / "runs", "bn", "8x2", [70.0, 71.0, 70.4])
    finished_seeds(tmp_path / "runs", "sn", "8x2", [80.0, 81.0, 80.4], **IMAGENET)
    runs = find_runs(tmp_path / "runs").runs
    groups = judge_claims(RunCollection(runs, tmp_path, read_paper(PAPER)))
    judged = [one for group in groups for one in group.judged]
    assert [one.study.data for one in judged] == ["imagenet"] * 12 + ["digits"] * 12
    assert {one.judgment.verdict.value for one in judged if one.claim.number < 8} == {"not tested"}
    for one in judged:
        datas = {run.cell.data for c in one.judgment.comparisons for run in c.runs}
        assert datas <= {one.study.data}


def test_reasons_for_not_testing_are_listed_once_and_measured_ones_first() -> None:
    pairs = [("A", "B"), ("A", "C"), ("A", "D"), ("E", "F")]
    untested = [Comparison("", (), why_not=f"{a} was not run; {b} was not run") for a, b in pairs]
    few = Comparison(
        "", groups={"G": [1.0]}, coefficients=[1.0], why_not="A was not run; G: 2 finished"
    )
    reasons = judge([*untested, few]).why_not
    assert reasons == ("A was not run; G: 2 finished; B was not run; C was not run; and 3 more")
    assert judge(untested[:1]).why_not == "A was not run; B was not run"
