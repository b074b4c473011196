"""The scripts as users run them, from a folder outside the repository."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import REPOSITORY, config, finished_run, result, write_run

STUDY_SCRIPTS = ("make_tables.py", "make_figures.py", "check_claims.py", "make_report.py")
REPORT_SCRIPTS = (*STUDY_SCRIPTS, "compare_runs.py", "sweep_status.py")


def run_script(
    name: str, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / name), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_make_tables(tmp_path: Path) -> None:
    for norm in ("bn", "gn", "sn"):
        finished_run(tmp_path / "runs", 90.0, norm=norm)
    (write_run(tmp_path / "runs", config(seed=1)) / "result.json").write_text("{")
    arguments = ("--runs", "runs", "--out", "out", "--only", "table2", "--settings", "8x2,8x1")
    done = run_script("make_tables.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [f"out/table2.{form}" for form in ("md", "tex", "csv")]
    assert done.stdout.split()[-3:] == files
    printed = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + 2 * 3 + 2 * 3  # ours and the paper's, methods and differences
    assert set(printed) <= set((tmp_path / "out" / "table2.md").read_text().splitlines())
    assert "(8,2) |" in done.stdout
    assert "(8,32)" not in done.stdout
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: runs/digits/resnet50_mini/bn/8x2/seed1/result.json")


def test_make_tables_without_the_paper(tmp_path: Path) -> None:
    for norm in ("bn", "sn"):
        finished_run(tmp_path / "runs", 90.0, norm=norm)
    arguments = ("--out", "out", "--only", "table2", "--no-paper")
    done = run_script("make_tables.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines() if "|" in line] == [
        *("", "-" * 5, "BN", "SN", "SN-BN")
    ]
    latex = (tmp_path / "out" / "table2.tex").read_text()
    assert "paper" not in latex + done.stdout
    assert latex.count(r"\begin{table}") == 1
    assert r"\label{tab:table2}" in latex


def test_make_tables_table_1_needs_no_runs(tmp_path: Path) -> None:
    done = run_script("make_tables.py", "--out", "out", "--only", "table1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "N, C, H, W = 32, 64, 56, 56" in done.stdout
    assert "2C + 2N + 2NC = 4288" in done.stdout  # 128 + 64 + 4096
    assert done.stdout.split()[-3:] == [f"out/table1.{form}" for form in ("md", "tex", "csv")]


def test_make_figures(tmp_path: Path) -> None:
    finished_run(tmp_path / "runs", 90.0, norm="sn")
    done = run_script("make_figures.py", "--runs", "runs", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0
    assert "no fig2: no run has finished an epoch" in done.stderr
    assert done.stdout.split() == [
        f"out/fig{number}.{form}" for number in (1, 3, 4) for form in ("png", "pdf", "json")
    ]
    assert all((tmp_path / name).is_file() for name in done.stdout.split())


def test_make_figures_without_an_sn_run(tmp_path: Path) -> None:
    settings = config("sn")
    write_run(tmp_path / "runs", settings, result(settings, status="failed"))
    done = run_script("make_figures.py", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "no finished SN run with importance weights" in done.stderr


def test_brief_output_has_results_alone(tmp_path: Path) -> None:
    for seed in range(3):
        finished_run(tmp_path / "runs", 90.0 + seed, norm="sn", seed=seed)
    (write_run(tmp_path / "runs", config(seed=1)) / "result.json").write_text("{")
    brief = ("--runs", "runs", "--out", "out", "--brief")
    for script, lines in (("check_claims.py", 14), ("make_tables.py", 18), ("make_report.py", 2)):
        done = run_script(script, *brief, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == lines, done.stdout


@pytest.mark.parametrize("script", STUDY_SCRIPTS)
def test_no_runs_is_a_one_line_error(tmp_path: Path, script: str) -> None:
    for folder, message in (("absent", "no such folder of runs"), (".", "holds no runs")):
        done = run_script(script, "--runs", folder, "--out", "out", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {folder}: {message}")
    assert not (tmp_path / "out").exists()


def test_sweep_status_exits_with_1_if_a_run_failed(tmp_path: Path) -> None:
    finished_run(tmp_path, 90.0)
    assert run_script("sweep_status.py", "--runs", str(tmp_path)).returncode == 0
    failed = config(norm="sn")
    write_run(tmp_path, failed, result(failed, status="failed"))
    done = run_script("sweep_status.py", "--runs", str(tmp_path))
    assert done.returncode == 1
    assert "1 finished, 1 failed" in done.stdout


@pytest.mark.parametrize("script", REPORT_SCRIPTS)
def test_an_interrupt_during_imports_prints_nothing(script: str) -> None:
    program = (
        "import os, runpy, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'sn_imagenet.runs': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting)\n"
        f"runpy.run_path({f'scripts/{script}'!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (-signal.SIGINT, "")
