"""Table 2's intervals, marks, departures and escapes in each format."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from run_files import REPOSITORY, config, finished_run, markdown_of, result, write_run
from scipy import stats

from sn_imagenet.reporting.cells import interval_text, signed_text
from sn_imagenet.reporting.command import Written
from sn_imagenet.reporting.render import (
    code_span,
    csv_text,
    latex_escape,
    markdown_escape,
    plain,
    round_half_up,
)
from sn_imagenet.reporting.tables import write_tables

PAPER = REPOSITORY / "results" / "paper.yaml"


def make(tmp_path: Path, *only: str, epoch: str = "final") -> Written:
    return write_tables(
        tmp_path / "runs",
        tmp_path / "out",
        PAPER,
        only or ["table2"],
        settings=["8x2"],
        epoch=epoch,
    )


def row(markdown: str, label: str, below: str = "") -> str:
    """The last cell of the first row with ``label`` after the row ``below``."""
    lines = markdown[markdown.index(f"| {below}") :].splitlines()
    return next(line.split("|")[2].strip() for line in lines if line.startswith(f"| {label} "))


def test_intervals_and_bold(tmp_path: Path) -> None:
    bn, sn = [76.1, 76.6, 76.45], [77.0, 77.3, 76.8]
    for norm, values in (("bn", bn), ("sn", sn)):
        for seed, value in enumerate(values):
            finished_run(tmp_path / "runs", value, norm=norm, seed=seed)
    written = make(tmp_path)
    own = stats.ttest_1samp(bn, 0).confidence_interval()
    gap = stats.ttest_ind(sn, bn, equal_var=False).confidence_interval()
    assert row(markdown_of(written), "– 95 % interval", "BN") == f"[{own.low:.1f}, {own.high:.1f}]"
    assert (
        row(markdown_of(written), "– 95 % interval", "SN-BN") == f"[{gap.low:.1f}, {gap.high:.1f}]"
    )
    assert row(markdown_of(written), "SN").startswith("**77.0 ")
    assert not row(markdown_of(written), "BN").startswith("*")
    assert r"\textbf{77.0 $\pm$ 0.3 (3)}" in (tmp_path / "out" / "table2.tex").read_text()
    with open(tmp_path / "out" / "table2.csv", newline="") as file:
        rows = {line["method"]: line for line in csv.DictReader(file)}
    assert float(rows["sn-bn"]["ci95_low"]) == pytest.approx(gap.low, abs=1e-6)
    assert float(rows["sn-bn"]["mean"]) == pytest.approx(np.mean(sn) - np.mean(bn), abs=1e-6)
    assert float(rows["bn"]["ci95_high"]) == pytest.approx(own.high, abs=1e-6)


def test_differences_carry_their_marks(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in (0, 1):
        finished_run(runs, 70.0 + seed, norm="bn", seed=seed)
        finished_run(runs, 72.0 + seed, norm="gn", seed=seed + 1)
        settings = config("sn", seed=seed)
        settings["protocol"]["dropout"] = 0.5
        outcome = result(settings, 80.0 + seed)
        outcome["departures"].append({"item": "dropout", "paper": "0.0", "ours": "0.5"})
        write_run(runs, settings, outcome)
    lost = config("bn", seed=2)
    write_run(runs, lost, result(lost, status="diverged"))
    written = make(tmp_path)
    assert row(markdown_of(written), "GN-BN") == "+2.0†‡"
    assert row(markdown_of(written), "SN-BN") == "+10.0‡§"
    assert row(markdown_of(written), "SN-GN") == "+8.0†§"
    latex = (tmp_path / "out" / "table2.tex").read_text()
    table = (tmp_path / "out" / "table2.csv").read_text()
    for text in (written.text, latex):
        assert "GN-BN (8,2) (seeds 1 2 against 0 1)" in text
        assert "protocol.dropout = 0.5 / absent" in text
        assert "Departure of 2 of 7: SN (8,2): dropout: 0.5 (paper: 0.0)" in text
    assert r"$+$" not in latex and r"+10.0$\ddagger$\S{}" in latex
    assert "dropout: 0.0 -> 0.5" in table
    assert "survivors unlike_runs" in table


def test_linear_scaling_is_one_rule(tmp_path: Path) -> None:
    for batch, rate in (("8x2", "0.00625"), ("8x8", "0.025"), ("8x32", None)):
        settings = config("bn", batch)
        outcome = result(settings)
        if rate:
            item = {"item": "initial learning rate", "paper": "0.1", "ours": rate}
            outcome["departures"].append(item)
        write_run(tmp_path / "runs", settings, outcome)
    written = write_tables(tmp_path / "runs", tmp_path / "out", PAPER, ["table2"])
    rule = "initial learning rate: 0.1 x batch / 256: 0.1 at (8,32), 0.025 at (8,8), 0.00625 at"
    assert f"all runs from the paper: epochs: 10 (paper: 100); {rule}" in written.text
    other = config("gn", "8x2")
    outcome = result(other)
    outcome["departures"].append({"item": "initial learning rate", "paper": "0.1", "ours": "0.05"})
    write_run(tmp_path / "runs", other, outcome)
    written = write_tables(tmp_path / "runs", tmp_path / "out", PAPER, ["table2"])
    assert "Departure of 1 of 4: GN (8,2): initial learning rate: 0.05" in written.text


def test_the_epoch_is_chosen_and_named(tmp_path: Path) -> None:
    tops = [50.0, 80.0, 75.0, 60.0, 76.0, 70.0]
    rows = [
        {"kind": "epoch", "epoch": i, "epochs": 6, "val": {"top1": t, "statistics": "sample"}}
        for i, t in enumerate(tops, start=1)
    ]
    settings = config("gn")
    write_run(
        tmp_path / "runs",
        settings,
        result(settings, 70.25),
        metrics="".join(json.dumps(entry) + "\n" for entry in rows),
    )
    finished_run(tmp_path / "runs", 71.0, norm="sn")
    assert row(markdown_of(make(tmp_path)), "GN") == "70.3"
    assert row(markdown_of(make(tmp_path, epoch="median5")), "GN") == "75.0"
    best = make(tmp_path, epoch="best")
    assert row(markdown_of(best), "GN") == "80.0"
    assert "Accuracy of a run: the best epoch" in best.text
    assert "Accuracy of a run" not in best.brief
    assert row(markdown_of(best), "SN") == "no epochs"
    (warning,) = best.warnings
    assert "sn/8x2/seed0: none of its 0 epochs was validated under batch_average" in warning


def test_other_methods_and_averages_by_samples(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for norm in ("in", "ln", "sn"):
        finished_run(runs, 70.0 + len(norm), norm=norm)
    for samples in ("1000", "all"):
        settings = config("bn")
        settings["calibration"]["samples"] = samples
        write_run(runs, settings, result(settings, 60.0, 65.0), folder=f"bn_{samples}")
    written = make(tmp_path, "methods", "table2")
    assert row(written.text, "IN-SN") == "0.0" or row(written.text, "IN-SN") == "+0.0"
    assert row(markdown_of(written), "BN, batch average, 1,000 samples") == "65.00"
    assert row(markdown_of(written), "BN, batch average, all samples") == "65.00"
    assert row(markdown_of(written), "BN, moving average") == "60.00"


def test_half_up() -> None:
    values = (75.25, 75.35, -8.75, 0.04, -0.04, -1e-12, 2.0)
    shown = [str(round_half_up(value, 1)) for value in values]
    assert shown == ["75.3", "75.4", "-8.8", "0.0", "-0.0", "0.0", "2.0"]
    assert (signed_text(-0.03, 1), signed_text(0.0, 1)) == ("-0.0", "+0.0")
    assert interval_text((-0.011, 1.111), 1) == "[-0.0, 1.1]"


def test_text_is_shown_literally() -> None:
    assert markdown_escape("resnet50_mini *x* _y_ `z` a|b <b>&amp;") == (
        r"resnet50_mini \*x\* \_y\_ \`z\` a\|b &lt;b>&amp;amp;"
    )
    assert markdown_escape("[30, 60] [a](b)") == r"[30, 60] \[a](b)"
    assert markdown_escape("\x1b[31mred\n# x") == r"\\x1b[31mred\\n# x"
    assert code_span("a`b") == "`` a`b ``"
    assert plain("a\x1b]0;b\x07\r") == "a\\x1b]0;b\\x07\\r"
    assert latex_escape("[a] 中\x00") == r"{[}a{]} U+4E2D\textbackslash{}x00"
    assert csv_text([{"a": "=1+1", "b": -1.5, "c": "@x"}]) == "a,b,c\n'=1+1,-1.5,'@x\n"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    for norm in ("bn", "sn", "in", "[x]_&%$#{}~^\\ü中"):
        for seed in range(2):
            settings = config(norm.replace("\\", ""), seed=seed)
            outcome = result(settings, 80.0 + seed)
            outcome["departures"].append({"item": "[odd]\\_", "paper": "{x}", "ours": "§±≥"})
            write_run(tmp_path / "runs", settings, outcome, folder=f"{len(norm)}/{norm[0]}{seed}")
    names = ["table2", "methods"]
    make(tmp_path, *names)
    inputs = "\n".join(rf"\input{{{name}.tex}}" for name in names)
    (tmp_path / "out" / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "out" / "all.pdf").read_bytes().startswith(b"%PDF")
