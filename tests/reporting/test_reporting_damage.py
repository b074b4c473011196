"""One odd run takes down no report: each is told in a line, and the others are shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_files import REPOSITORY, config, csv_rows, epoch_rows, finished_seeds, result, write_run

ESCAPES = "\x1b]0;title\x07"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for norm, top1 in (("bn", 90.0), ("sn", 91.0)):
        finished_seeds(tmp_path / "runs", norm, "8x2", [top1, top1 + 1, top1 + 2])
    return tmp_path / "runs"


def script(name: str, runs: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    """A script on ``runs``; what reads what never ends is killed."""
    command = [sys.executable, str(REPOSITORY / "scripts" / name), "--runs", str(runs), *options]
    return subprocess.run(command, capture_output=True, timeout=120, check=False)


def all_reports(runs: Path, *, status: int = 0) -> str:
    """What the scripts print, one after the other; none ends in a traceback."""
    printed = b""
    for name in ("make_tables.py", "check_claims.py", "make_report.py", "sweep_status.py"):
        only = ["--only", "table2"] if name == "make_tables.py" else []
        out = ["--out", str(runs.parent / "out"), *only] if name != "sweep_status.py" else []
        done = script(name, runs, *out)
        assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
        assert done.returncode == (status if name == "sweep_status.py" else 0), done.stderr
        printed += done.stdout + done.stderr
    assert not set(printed) & {0x1B, 0x07}
    return printed.decode("utf-8")  # also where names are not


def claims(runs: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((runs.parent / "out" / "claims.json").read_text())
    return content


def odd_file(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("[" * 100_000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "endless", "nested"])
def test_results_that_are_no_files_of_json(runs: Path, kind: str) -> None:
    victim = write_run(runs, config("gn"))
    odd_file(victim / "result.json", kind)
    other = write_run(runs, config("gn", seed=1), result(config("gn", seed=1)))
    (other / "config.yaml").unlink()
    odd_file(other / "config.yaml", kind)
    printed = all_reports(runs, status=1)
    assert f"{victim / 'result.json'} cannot be read" in printed
    assert "unreadable" in (runs.parent / "out" / "table2.md").read_text()
    assert claims(runs)["claims"][0]["verdict"] == "undecided"


@pytest.mark.slow
def test_values_of_the_wrong_kind(runs: Path) -> None:
    for seed, (key, value) in enumerate([("seen", [1]), ("top1_correct", "3"), ("seen", {})]):
        outcome = result(config("gn", seed=seed))
        outcome["evaluations"][0][key] = value
        write_run(runs, config("gn", seed=seed), outcome)
    printed = all_reports(runs, status=1)
    assert "malformed result: seen [1] where a count is expected" in printed


@pytest.mark.slow
def test_names_that_are_not_utf8_and_names_that_move_the_cursor(runs: Path) -> None:
    folder = runs / os.fsdecode(b"caf\xe9") / ESCAPES
    write_run(folder, config("gn"), result(config("gn")))
    broken = write_run(folder, config("gn", seed=1))
    (broken / "result.json").write_text("{")
    odd = config("odd" + ESCAPES)
    odd["run_dir"] = "runs/odd"
    write_run(runs, odd, result(odd, detail=ESCAPES))
    all_reports(runs, status=1)
    out = runs.parent / "out"
    folders = [name for claim in claims(runs)["claims"] for name in claim["runs"]]
    assert any(name.startswith("caf\\xe9/") for name in folders)
    assert any("caf\\xe9" in key for key in csv_rows(out / "table2.csv", "run_dirs"))
    for name in ("table2.md", "table2.tex", "claims.md", "report.html"):
        (out / name).read_bytes().decode("utf-8")


def test_a_result_of_another_run_is_told(runs: Path) -> None:
    mine = config("gn", seed=0)
    rows = epoch_rows(mine, 2)
    victim = write_run(runs, mine, result(config("sn", seed=2), 99.0), metrics=rows)
    done = script("make_tables.py", runs, "--out", str(runs.parent / "out"), "--only", "table2")
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"warning: {victim / 'result.json'} is of another run (")
    assert "norm.name" in line and "remove it and run the training command again" in line
    table = (runs.parent / "out" / "table2.md").read_text()
    assert "unreadable" in table and "99.0" not in table
