"""A study's own statements: every pair of seeds, on made-up runs with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from run_files import REPOSITORY, finished_seeds, result_of

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.claims_report import write_claims
from sn_imagenet.reporting.expected import read_expected
from sn_imagenet.reporting.page import write_page
from sn_imagenet.runs import find_runs

PAPER = REPOSITORY / "results" / "paper.yaml"
HEAD = "data: digits\nmodel: resnet50_mini\nexpected:\n"
LOSS = "- {text: BN loses., quantity: top-1, first: bn 8x8, second: bn 8x1, at_least: 10}\n"
WEIGHT = "- {text: It falls., quantity: variance weight bn, first: sn 8x8, second: sn 8x2, %s}\n"


def judged(root: Path, statements: str) -> tuple[list[dict[str, Any]], str]:
    file = root / "study.yaml"
    file.write_text(HEAD + statements)
    written = write_claims(root / "runs", root / "out", PAPER, file)
    assert written.brief.startswith("Regression checks on digits, resnet50_mini (study.yaml, set ")
    assert written.brief in written.text and "The paper's claims" not in written.brief
    return json.loads(written.paths[0].read_text())["expected"], written.paths[1].read_text()


@pytest.mark.parametrize(
    ("small", "verdict", "margin"),
    [
        ([20.0, 79.0, 50.0], "holds", "+1.00"),  # the mean's interval would be -40 to +120
        ([20.0, 81.0, 50.0], "undecided", "-1.00"),
        ([82.0, 83.0, 89.0], "does not hold", "-9.00"),
    ],
)
def test_every_pair_of_seeds_decides(
    tmp_path: Path, small: list[float], verdict: str, margin: str
) -> None:
    finished_seeds(tmp_path / "runs", "bn", "8x8", [90.0, 90.5, 91.0])
    finished_seeds(tmp_path / "runs", "bn", "8x1", small)
    (entry,), text = judged(tmp_path, LOSS)
    assert entry["verdict"] == verdict
    assert entry["seeds"] == {"BN (8,8)": 3, "BN (8,1)": 3}
    assert f"in 9 pairs of seeds: {90 - max(small):+.2f} to" in entry["counted"]
    assert f"claimed ≥ 10, margin {margin}" in entry["counted"]
    assert f"1. **{verdict}**: [digits] BN loses. (study.yaml)" in text


@pytest.mark.slow
def test_the_page_shows_the_papers_claims_before_statements(tmp_path: Path) -> None:
    finished_seeds(tmp_path / "runs", "bn", "8x8", [90.0, 90.5, 91.0])
    finished_seeds(tmp_path / "runs", "bn", "8x1", [20.0, 79.0, 50.0])
    (entry,), _ = judged(tmp_path, LOSS)
    page = write_page(tmp_path / "runs", tmp_path, PAPER, tmp_path / "study.yaml")
    content = page.paths[0].read_text()
    checks = content.index(
        ">Regression checks on digits, resnet50_mini (study.yaml, set from our own"
    )
    assert content.index(">The paper&#39;s claims on digits") < checks
    assert entry["counted"] in content


def test_two_seeds_and_missing_runs_are_not_tested(tmp_path: Path) -> None:
    finished_seeds(tmp_path / "runs", "bn", "8x8", [90.0, 91.0])
    (entry,), text = judged(tmp_path, LOSS)
    assert entry["verdict"] == "not tested"
    assert "BN (8,8): 2 finished, 3 seeds are needed; BN (8,1) was not run" in text


def test_importance_weights_are_averaged_over_the_layers(tmp_path: Path) -> None:
    for batch in ("8x8", "8x2"):
        finished_seeds(tmp_path / "runs", "sn", batch, [90.0, 91.0, 92.0])
    (entry,), _ = judged(tmp_path, WEIGHT % "at_most: 1")
    means: dict[str, list[float]] = {"8x8": [], "8x2": []}
    for run in find_runs(tmp_path).runs:
        layers = result_of(run)["importance_weights"]
        means[run.cell.setting.name].append(fmean(w["variance"]["bn"] for w in layers))
    assert entry["effect"] == pytest.approx(fmean(means["8x8"]) - fmean(means["8x2"]))
    assert entry["unit"] == "importance weight"
    assert entry["verdict"] == "holds"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a file of statements"),
        (HEAD + "- {text: a}\n", "statement 1: has ['text']"),
        (HEAD + LOSS + LOSS.replace("8x1", "8by1"), "statement 2: setting '8by1'"),
        (HEAD + WEIGHT % "at_least: high", "statement 1: could not convert"),
        (HEAD + LOSS.replace("top-1", "top-2"), "statement 1: quantity: top-2: expected top-1"),
        (HEAD + LOSS.replace("bn 8x1", "3"), "statement 1: "),
        (HEAD + LOSS.replace("top-1", "1"), "statement 1: "),
        (HEAD + "- 3\n", "statement 1: "),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_expected(file)
    assert str(file) in str(error.value) and message in str(error.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot read the statements"):
        read_expected(tmp_path / "none.yaml")
