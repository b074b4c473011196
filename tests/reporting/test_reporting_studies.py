"""The committed tables, figures and verdicts of the studies match their committed runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_files import PAPER, REPOSITORY

from sn_imagenet.reporting.claims_report import write_claims
from sn_imagenet.reporting.figures.files import write_figures
from sn_imagenet.reporting.page import write_page
from sn_imagenet.reporting.tables import RUN_TABLES, write_tables

RESULTS = REPOSITORY / "results"
FILES = [*RESULTS.glob("*/runs"), *RESULTS.glob("*/report.html")]
STUDIES = sorted({file.parent for file in FILES if file.parent.name != "demo"})
# Reports of parts of one folder of runs, as in the Makefile.
PARTS: dict[str, dict[str, Any]] = {
    "small_batch": {"settings": ["8x32", "8x8", "8x2", "8x1"]},
    "imagenette": {"methods": ["bn", "gn", "sn"]},
}
each_study = pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)


def runs_of(study: Path) -> Path:
    folder = study.with_name("small_batch") if study.name == "imagenette" else study
    return folder / "runs"


@each_study
def test_tables_regenerate_byte_for_byte(study: Path, tmp_path: Path) -> None:
    tables = [name for name in RUN_TABLES if (study / f"{name}.md").exists()]
    if not tables:
        pytest.skip("a study in progress, which has no tables yet")
    write_tables(runs_of(study), tmp_path, PAPER, tables, **PARTS.get(study.name, {}))
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (study / file.name).read_bytes(), file.name


@each_study
def test_figures_show_the_same_numbers(study: Path, tmp_path: Path) -> None:
    def figures(folder: Path) -> set[str]:
        others = ("claims", "found")  # found objects are drawn into pictures that are not committed
        return {f.name for f in folder.glob("*.json") if not f.name.startswith(others)}

    committed = figures(study)
    if not committed:
        pytest.skip("a study without figures")
    write_figures(runs_of(study), tmp_path, **PARTS.get(study.name, {}))
    assert figures(tmp_path) == committed
    for name in committed:
        assert json.loads((tmp_path / name).read_text()) == json.loads((study / name).read_text())
        assert (study / name).with_suffix(".png").exists()


@each_study
def test_verdicts_regenerate_byte_for_byte(study: Path, tmp_path: Path) -> None:
    if not (study / "claims.json").exists():
        pytest.skip("a study without verdicts")
    expected = RESULTS / "expected" / f"{study.name}.yaml"
    statements = expected if expected.exists() else None
    write_claims(runs_of(study), tmp_path, PAPER, statements, **PARTS.get(study.name, {}))
    for name in ("claims.json", "claims.md"):
        assert (tmp_path / name).read_bytes() == (study / name).read_bytes()


@each_study
def test_reports_regenerate_but_for_their_pictures(study: Path, tmp_path: Path) -> None:
    if not (study / "report.html").exists():
        pytest.skip("a study in progress, which has no report yet")
    for file in study.glob("found*.png"):  # of pictures that are not committed
        shutil.copy(file, tmp_path)
    expected, sweep = RESULTS / "expected" / f"{study.name}.yaml", study.name
    statements, part = expected if expected.exists() else None, PARTS.get(study.name, {})
    write_page(runs_of(study), tmp_path, PAPER, statements, sweep, **part)
    texts = [(folder / "report.html").read_text() for folder in (tmp_path, study)]
    made, committed = (re.sub(r"data:image[^\"]*", "", text) for text in texts)
    assert made.replace(str(REPOSITORY) + "/", "") == committed


@each_study
def test_results_are_complete_and_contain_no_absolute_path(study: Path) -> None:
    files = sorted(runs_of(study).rglob("result.json"))
    assert files
    for file in files:
        text = file.read_text()
        result = json.loads(text)
        assert result["status"] in ("finished", "diverged"), file
        assert result["provenance"]["git_dirty"] is False, file
        assert result["provenance"]["hardware"]["processor"], file
        assert not re.search(r'"/\w', text), file
        assert file.with_name("metrics.jsonl").exists(), file
