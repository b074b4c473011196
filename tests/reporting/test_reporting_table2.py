"""Table 2: numbers against independent arithmetic, states of runs, intervals, marks, departures and
escapes in each format."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from run_files import (
    PAPER,
    config,
    csv_rows,
    finished_run,
    markdown_of,
    result,
    table_rows,
    write_run,
)
from scipy import stats

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.cells import interval_text, minus, signed_text
from sn_imagenet.reporting.command import Written
from sn_imagenet.reporting.paper import PAPER_SETTINGS, in_paper_order, read_paper
from sn_imagenet.reporting.render import (
    code_span,
    csv_text,
    decimals,
    latex_escape,
    markdown_escape,
    plain,
    round_half_up,
)
from sn_imagenet.reporting.report import run_tables
from sn_imagenet.reporting.tables import write_tables
from sn_imagenet.runs import Setting, run_from_result

IMAGENET = {"data": "imagenet", "model": "resnet50"}


def make(tmp_path: Path, **options: Any) -> Written:
    return write_tables(tmp_path / "runs", tmp_path / "out", PAPER, **options)


def table_of(written: Written, heading: str = "## digits") -> dict[str, list[str]]:
    """Label -> cells of the first table after ``heading``, without bold."""
    rows = table_rows(markdown_of(written), heading)
    return {label: [cell.strip("*") for cell in cells] for label, *cells in rows}


def csv_of(tmp_path: Path) -> dict[tuple[str, str], dict[str, str]]:
    return csv_rows(tmp_path / "out" / "table2.csv", "method", "setting")


def test_papers_numbers_give_the_papers_differences() -> None:
    paper = read_paper(PAPER)
    published = {  # the lower part of Table 2, as printed
        ("gn", "bn"): [-0.5, -0.5, 0.8, 3.1, 10.6, -0.3, -0.7, None, 0.1],
        ("sn", "bn"): [0.5, 0.4, 1.5, 3.2, 10.3, 0.1, 0.1, None, 0.5],
        ("sn", "gn"): [1.0, 0.9, 0.7, 0.1, -0.3, 0.4, 0.8, -0.5, 0.4],
    }
    for pair, differences in published.items():
        ours = [minus(*(paper.top1(m, s) for m in pair)) for s in PAPER_SETTINGS]
        assert ours == pytest.approx(differences, abs=1e-9)
    assert paper.cells["bn", Setting(8, 1)].note == "did not converge"
    columns = yaml.safe_load(PAPER.read_text())["paper"][0]["top1"]
    assert list(columns) == [setting.name for setting in PAPER_SETTINGS]


def test_mean_deviation_and_interval_over_seeds(tmp_path: Path) -> None:
    values = {"bn": [76.1, 76.6, 76.45], "gn": [75.2, 75.9, 75.3], "sn": [76.8, 77.3, 77.1]}
    for norm, tops in values.items():
        for seed, top1 in enumerate(tops):
            finished_run(tmp_path / "runs", top1, norm=norm, batch="8x32", seed=seed, **IMAGENET)
    rows = table_rows(markdown_of(make(tmp_path)), "## imagenet, resnet50")[1:]
    shown = {row[0]: (row[1], below[1]) for row, below in itertools.pairwise(rows)}
    tidy = csv_of(tmp_path)
    for norm, tops in values.items():
        row, own = tidy[norm, "8x32"], stats.ttest_1samp(tops, 0).confidence_interval()
        number = f"{np.mean(tops):.1f} ± {np.std(tops, ddof=1):.1f} (3)"
        number = f"**{number}**" if norm == "sn" else number
        assert shown[norm.upper()] == (number, f"[{own.low:.1f}, {own.high:.1f}]")
        assert float(row["mean"]) == pytest.approx(np.mean(tops), abs=1e-6)
        assert float(row["std"]) == pytest.approx(np.std(tops, ddof=1), abs=1e-6)
        assert float(row["ci95_high"]) == pytest.approx(own.high, abs=1e-6)
        assert (row["n_seeds"], row["states"]) == ("3", "finished:3")
    assert tidy["sn", "8x32"]["paper"] == "76.9"
    assert tidy["sn", "8x32"]["run_dirs"].split(";") == [
        f"imagenet/resnet50/sn/8x32/seed{seed}" for seed in range(3)
    ]
    gap = np.mean(values["sn"]) - np.mean(values["gn"])
    welch = stats.ttest_ind(values["sn"], values["gn"], equal_var=False).confidence_interval()
    assert shown["SN-GN"] == (f"{gap:+.1f}", f"[{welch.low:.1f}, {welch.high:.1f}]")
    assert float(tidy["sn-gn", "8x32"]["mean"]) == pytest.approx(gap, abs=1e-6)
    assert float(tidy["sn-gn", "8x32"]["ci95_low"]) == pytest.approx(welch.low, abs=1e-6)
    assert r"\textbf{77.1 $\pm$ 0.3 (3)}" in (tmp_path / "out" / "table2.tex").read_text()


def test_the_papers_rows_are_below_ours(tmp_path: Path) -> None:
    finished_run(tmp_path / "runs", 75.4, norm="bn", batch="8x32", **IMAGENET)
    table = table_rows(markdown_of(make(tmp_path)), "## imagenet, resnet50")
    assert table[0][1:] == [str(setting) for setting in PAPER_SETTINGS]
    assert [row[0] for row in table[1:]] == [
        *("BN", "– paper", "– ours − paper", "GN", "– paper", "– ours − paper"),
        *("SN", "– paper", "– ours − paper"),
        *("GN-BN", "– paper", "SN-BN", "– paper", "SN-GN", "– paper"),
    ]
    assert table[1][1:] == ["75.4", *["—"] * 8]
    assert table[2][1:] == ["76.4", "76.3", "75.2", "72.7", "65.3", "76.2", "76.5", "—ᵃ", "75.4"]
    assert table[3][1:] == ["-1.0", *["—"] * 8]
    assert table[11][1:] == ["-0.5", "-0.5", "+0.8", "+3.1", "+10.6", "-0.3", "-0.7", "—", "+0.1"]


def test_no_difference_from_the_paper_on_other_data(tmp_path: Path) -> None:
    finished_run(tmp_path / "runs", 92.5, norm="sn", batch="8x2")
    written = make(tmp_path)
    labels = table_of(written)
    assert "– paper (ImageNet, ResNet-50)" in labels
    assert not any("ours" in label for label in labels)
    assert "for orientation only" in markdown_of(written)
    row = csv_of(tmp_path)["sn", "8x2"]
    assert (row["paper"], row["states"]) == ("", "finished:1")
    assert csv_of(tmp_path)["bn", "8x2"]["states"] == "missing"


def test_every_state_is_shown(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    there = {"host": "another-host.invalid", "pid": 1, "started": "now"}
    epoch = '{"kind": "epoch", "epoch": 3, "epochs": 10}\n'
    bn = [config("bn", "8x2", seed=seed) for seed in range(3)]
    write_run(runs, bn[0], result(bn[0], 91.0))
    write_run(runs, bn[1], result(bn[1], 91.5))
    write_run(runs, bn[2], result(bn[2], status="diverged"))
    for seed in range(2):
        settings = config("bn", "8x1", seed=seed)
        write_run(runs, settings, result(settings, status="diverged"))
    write_run(runs, config("gn", "8x2"), lock=there, metrics=epoch)
    write_run(runs, config("gn", "8x1"), metrics=epoch)
    failed = config("sn", "8x2")
    write_run(runs, failed, result(failed, status="failed"))
    (write_run(runs, config("sn", "8x1")) / "result.json").write_text("{")
    write_run(runs, config("sn", "8x8", seed=0), lock=there, metrics=epoch)
    mixed = config("sn", "8x8", seed=1)
    write_run(runs, mixed, result(mixed, status="diverged"))
    written = make(tmp_path, settings=["8x8", "8x2", "8x1"])
    table = table_of(written)
    assert table["BN"] == ["—", "91.3 ± 0.4 (2 of 3; 1 diverged)", "diverged (2)"]
    assert table["GN"] == ["—", "running 3/10", "interrupted 3/10"]
    assert table["SN"] == ["1 running 3/10, 1 diverged", "failed", "unreadable"]
    assert len(written.warnings) == 1
    assert "sn/8x1/seed0/result.json" in written.warnings[0]
    assert "`digits/resnet50_mini/sn/8x2/seed0`: failed, out of memory" in markdown_of(written)
    assert csv_of(tmp_path)["bn", "8x2"]["states"] == "finished:2;diverged:1"


@pytest.mark.parametrize(
    ("section", "key", "value", "averaged"),
    [
        ("protocol", "weight_decay", 0.0, False),
        ("trainer", "epochs", 20, False),
        ("calibration", "estimator", "population", False),
        ("trainer", "device", "cuda", True),
        ("trainer", "log_every", 1, True),
        ("data", "root", "elsewhere", True),
        ("data", "workers", 0, True),
    ],
)
def test_only_seeds_of_one_experiment_are_averaged(
    tmp_path: Path, section: str, key: str, value: object, averaged: bool
) -> None:
    finished_run(tmp_path / "runs", 90.0, norm="gn", seed=0)
    finished_run(tmp_path / "runs", 80.0, norm="bn", seed=0)
    other = config("bn", seed=1)
    other[section][key] = value
    write_run(tmp_path / "runs", other, result(other, 82.0))
    written = make(tmp_path, settings=["8x2"])
    table = table_of(written)
    assert table["GN"] == ["90.0"]
    if averaged:
        assert table["BN"] == ["81.0 ± 1.4 (2)"]
        assert written.warnings == []
    else:
        assert table["BN"] == ["mixed configs (2 runs)"]
        assert table["GN-BN"] == ["—"]
        assert "### Warnings" in markdown_of(written)
        assert f"{section}.{key}" in written.warnings[0]
        assert "bn/8x2/seed1" in written.warnings[0]
        row = csv_of(tmp_path)["bn", "8x2"]
        assert (row["mean"], row["states"]) == ("", "mixed configs:2")


def test_another_calibration_at_evaluation_does_not_count(tmp_path: Path) -> None:
    for seed in range(2):
        settings = config("sn", seed=seed)
        outcome = result(settings, 90.0)
        (evaluation, _) = outcome["evaluations"]
        calibration = {**evaluation["calibration"], "samples_requested": "all"}
        other = {**evaluation, "calibration": calibration, "top1": 80.0}
        outcome["evaluations"] = [other] if seed else [other, evaluation]
        write_run(tmp_path / "runs", settings, outcome)
    written = make(tmp_path, settings=["8x2"])
    table = table_of(written)
    assert table["SN"] == ["90.0 (1 of 2; 1 not evaluated)"]
    table = table_of(written, "### Moving average and batch")
    assert table["SN, batch average, all samples"] == ["80.00 ± 0.00 (2)"]


def test_both_statistics_are_shown_and_the_one_in_the_table_is_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed, (moving, batch) in enumerate([(60.0, 66.0), (61.0, 67.5)]):
        finished_run(runs, moving, batch, norm="bn", seed=seed)
    finished_run(runs, 92.5, 90.25, norm="sn")
    finished_run(runs, 91.0, norm="sn", batch="8x1")
    finished_run(runs, 90.0, norm="gn")
    written = make(tmp_path, settings=["8x2", "8x1"])
    table, markdown = table_of(written, "### Moving average and batch"), markdown_of(written)
    assert table["BN, moving average"] == ["60.50 ± 0.71 (2)", "—"]
    assert table["BN, batch average"] == ["66.75 ± 1.06 (2)", "—"]
    assert table["SN, moving average"] == ["90.25", "—"]
    assert table["SN, batch average"] == ["92.50", "—"]
    assert not any(label.startswith("GN") for label in table)
    assert "BN moving average; GN per-sample statistics; SN batch average (at (8,1)" in markdown
    assert "SN chooses from {IN, LN, BN} (at (8,1) {IN, LN})." in markdown
    assert "mean_of_variances, 50000 training samples requested, 1396 used" in markdown


def test_other_methods_and_settings_are_appended(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finished_run(runs, 71.6, norm="in", batch="8x32", **IMAGENET)
    finished_run(runs, 70.0, norm="my_norm", batch="4x6", **IMAGENET)
    finished_run(runs, 90.0, norm="sn", batch="8x2")
    markdown = markdown_of(make(tmp_path))
    assert markdown.index("## imagenet, resnet50") < markdown.index("## digits, resnet50_mini")
    table = table_rows(markdown, "## imagenet")
    assert table[0][-1] == "(4,6)"
    labels = [row[0] for row in table]
    assert table[labels.index("IN")][1] == "71.6"
    assert table[labels.index("IN") + 1][1:3] == ["71.6", ""]
    assert table[labels.index("my_norm")][-1] == "70.0"


def test_latex_is_well_formed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in range(2):
        finished_run(runs, 90.0 + seed, norm="my_norm&co", batch="8x2", seed=seed)
        finished_run(runs, 75.0 + seed, norm="bn", batch="8x32", seed=seed, **IMAGENET)
    make(tmp_path)
    latex = (tmp_path / "out" / "table2.tex").read_text()
    assert latex.isascii()
    assert r"my\_norm\&co" in latex
    assert r"75.5 $\pm$ 0.7 (2)" in latex
    assert "$-$0.9" in latex
    tables = re.findall(r"\\begin\{tabular\}\{l(c+)\}(.*?)\\end\{tabular\}", latex, re.S)
    assert len(tables) == 2  # one for each study
    assert latex.count(r"\label{tab:table2}") == latex.count(r"\label{tab:table2-2}") == 1
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns)}
    unescaped = re.sub(r"\\[{}]", "", latex)
    assert unescaped.count("{") == unescaped.count("}")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"only": ["table9"]}, "table 'table9': expected one of table2, methods"),
        ({"only": ["table1"]}, "table 'table1': expected one of table2"),
        ({"settings": ["8by2"]}, "setting '8by2'"),
        ({"paper_file": Path("nowhere.yaml")}, "nowhere.yaml: cannot read"),
    ],
)
def test_user_errors_are_named(tmp_path: Path, keywords: dict, message: str) -> None:
    finished_run(tmp_path / "runs", 90.0)
    arguments = {"paper_file": PAPER, **keywords}
    with pytest.raises(UserError, match=re.escape(message)):
        write_tables(tmp_path / "runs", tmp_path / "out", **arguments)


@pytest.mark.parametrize("text", ["a: [", "task: {}", "[]", ""])
def test_malformed_paper_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "paper.yaml").write_text(text)
    with pytest.raises(UserError, match=r"paper\.yaml: not a file of published numbers"):
        read_paper(tmp_path / "paper.yaml")


def test_settings_are_in_the_papers_order() -> None:
    mixed = {Setting(4, 6), Setting(1, 8), Setting(8, 1), Setting(8, 32), Setting(4, 8)}
    assert [s.name for s in in_paper_order(mixed)] == ["8x32", "8x1", "1x8", "4x8", "4x6"]


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    finished_run(tmp_path / "runs", 90.0)
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write .*table2\.md: .* with --out"):
        make(tmp_path)


def test_top1_table() -> None:
    sn, gn, bn = config("sn", "8x2", seed=3), config("gn|x", "8x2"), config("bn", "8x1")
    results = [result(sn, 92.5, 91.25), result(gn, 90.0), result(bn, status="diverged")]
    table = table_rows(run_tables([run_from_result(one, Path(".")) for one in results]))
    assert table[0] == (
        ["data", "model", "norm", "setting", "seed", "statistics", "top-1", "top-5", "correct/seen"]
    )
    digits = ["digits", "resnet50_mini"]
    assert table[1:] == [
        [*digits, "SN", "(8,2)", "3", "batch average", "92.50", "99.50", "370/400"],
        [*digits, "SN", "(8,2)", "3", "moving average", "91.25", "99.50", "365/400"],
        [*digits, "gn\\|x", "(8,2)", "0", "per-sample statistics", "90.00", "99.50", "360/400"],
        [*digits, "BN", "(8,1)", "0", "—", "diverged", "—", "—"],
    ]


def test_differences_carry_their_marks_and_runs_their_departures(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in (0, 1):
        finished_run(runs, 70.0 + seed, norm="bn", seed=seed)
        finished_run(runs, 72.0 + seed, norm="gn", seed=seed + 1)
        settings = config("sn", seed=seed)
        settings["protocol"]["dropout"] = 0.5
        provenance = {"git_revision": "f" * 40, "git_dirty": True}
        outcome = result(settings, 80.0 + seed, provenance=provenance)
        outcome["departures"].append({"item": "dropout", "paper": "0.0", "ours": "0.5"})
        write_run(runs, settings, outcome)
    lost = config("bn", seed=2)
    write_run(runs, lost, result(lost, status="diverged"))
    written = make(tmp_path, settings=["8x2"])
    differences = {"GN-BN": ["+2.0†‡"], "SN-BN": ["+10.0‡§"], "SN-GN": ["+8.0†§"]}
    assert table_of(written).items() >= differences.items()
    assert csv_of(tmp_path)["sn-bn", "8x2"]["marks"] == "‡§"
    latex = (tmp_path / "out" / "table2.tex").read_text()
    for text in (written.text, latex):
        assert "GN-BN (8,2) (seeds 1 2 against 0 1)" in text
        assert "protocol.dropout = 0.5 / absent" in text
        assert "Departure of 2 of 7: SN (8,2): dropout: 0.5 (paper: 0.0)" in text
    assert r"$+$" not in latex and r"+10.0$\ddagger$\S{}" in latex
    markdown = markdown_of(written)
    assert table_rows(markdown, "### Departures")[1:] == [
        ["epochs", "100", "10", "all 7"],
        ["dropout", "0.0", "0.5", "2 of 7: SN (8,2)"],
    ]
    assert "- `0123456789ab`: 5 runs\n" in markdown
    assert "- `ffffffffffff`, with uncommitted changes: 2 runs" in markdown


def test_linear_scaling_is_one_rule(tmp_path: Path) -> None:
    for batch, rate in (("8x2", "0.00625"), ("8x8", "0.025"), ("8x32", None)):
        settings = config("bn", batch)
        outcome = result(settings)
        if rate:
            item = {"item": "initial learning rate", "paper": "0.1", "ours": rate}
            outcome["departures"].append(item)
        write_run(tmp_path / "runs", settings, outcome)
    written = make(tmp_path)
    rule = "initial learning rate: 0.1 x batch / 256: 0.1 at (8,32), 0.025 at (8,8), 0.00625 at"
    assert f"all runs from the paper: epochs: 10 (paper: 100); {rule}" in written.text
    other = config("gn", "8x2")
    outcome = result(other)
    outcome["departures"].append({"item": "initial learning rate", "paper": "0.1", "ours": "0.05"})
    write_run(tmp_path / "runs", other, outcome)
    written = make(tmp_path)
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
    shown = {"final": "70.3", "median5": "75.0", "best": "80.0"}
    for epoch, text in shown.items():
        best = make(tmp_path, settings=["8x2"], epoch=epoch)
        assert table_of(best)["GN"] == [text]
    assert "Accuracy of a run: the best epoch" in best.text
    assert "Accuracy of a run" not in best.brief
    assert table_of(best)["SN"] == ["no epochs"]
    (warning,) = best.warnings
    assert "sn/8x2/seed0: no epoch that can be read was validated under batch_average" in warning


def test_other_methods_and_averages_by_samples(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for norm in ("in", "ln", "sn"):
        finished_run(runs, 70.0 + len(norm), norm=norm)
    settings = config("bn")
    outcome = result(settings, 60.0, 65.0)
    batch = outcome["evaluations"][1]
    calibration = {**batch["calibration"], "samples_requested": 1000}
    outcome["evaluations"].append({**batch, "calibration": calibration, "top1": 64.0})
    write_run(runs, settings, outcome)
    written = make(tmp_path, settings=["8x2"])
    assert table_of(written)["IN-SN"] == table_of(written)["LN-SN"] == ["+0.0"]
    table = table_of(written, "### Moving average and batch")
    assert table["BN, moving average"] == ["60.00"]
    assert table["BN, batch average, 1,000 samples"] == ["64.00"]
    assert table["BN, batch average, 50,000 samples"] == ["65.00"]


@pytest.mark.parametrize(
    ("escape", "text", "shown"),
    [
        (latex_escape, "50% of a_b & {c} #1 $x$", r"50\% of a\_b \& \{c\} \#1 \$x\$"),
        (latex_escape, "^ ~ a\\b", r"\textasciicircum{} \textasciitilde{} a\textbackslash{}b"),
        (latex_escape, "-0.5 GN-BN ResNet-50 2024-01-02", "$-$0.5 GN-BN ResNet-50 2024-01-02"),
        (latex_escape, "[a] 中\x00", r"{[}a{]} U+4E2D\textbackslash{}x00"),
        (markdown_escape, "resnet50_mini *x* _y_ `z`", r"resnet50_mini \*x\* \_y\_ \`z\`"),
        (markdown_escape, "a|b <b>&amp; [30, 60] [a](b)", r"a\|b &lt;b>&amp;amp; [30, 60] \[a](b)"),
        (markdown_escape, "\x1b[31mred\n# x", r"\\x1b[31mred\\n# x"),
        (code_span, "a`b", "`` a`b ``"),
        (plain, "a\x1b]0;b\x07\r", "a\\x1b]0;b\\x07\\r"),
    ],
)
def test_text_is_shown_literally(escape: Callable[[str], str], text: str, shown: str) -> None:
    assert escape(text) == shown


def test_half_up() -> None:
    values = (75.25, 75.35, -8.75, 0.04, -0.04, -1e-12, 2.0)
    shown = [str(round_half_up(value, 1)) for value in values]
    assert shown == ["75.3", "75.4", "-8.8", "0.0", "-0.0", "0.0", "2.0"]
    assert (signed_text(-0.03, 1), signed_text(0.0, 1)) == ("-0.0", "+0.0")
    assert interval_text((-0.011, 1.111), 1) == "[-0.0, 1.1]"
    assert csv_text([{"a": "=1+1", "b": -1.5, "c": "@x"}]) == "a,b,c\n'=1+1,-1.5,'@x\n"


@pytest.mark.parametrize(
    ("values", "unit", "digits", "shown"),
    [
        ([95.25, 90.0, 100.0], "%", 2, "+95.25 [-95.25, 95.25]"),
        ([1109264.0, 1315059.0, 4367775.0], "", -2, "+1109300 [-1109300, 1109300]"),
        ([0.042149, None, 0.05], "", 6, "+0.042149 [-0.042149, 0.042149]"),
        ([0.0], "", 2, "+0.00 [0.00, 0.00]"),
        ([2e30], "", -26, f"+2{'0' * 30} [-2{'0' * 30}, 2{'0' * 30}]"),
    ],
)
def test_scores_without_a_unit_have_five_significant_digits(
    values: list[float], unit: str, digits: int, shown: str
) -> None:
    assert decimals(values, unit) == digits
    first = values[0]
    assert f"{signed_text(first, digits)} {interval_text((-first, first), digits)}" == shown
    assert signed_text(0.0, -3) == "+0"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    for norm in ("bn", "sn", "in", "[x]_&%$#{}~^\\ü中"):
        for seed in range(2):
            settings = config(norm.replace("\\", ""), seed=seed)
            outcome = result(settings, 80.0 + seed)
            outcome["departures"].append({"item": "[odd]\\_", "paper": "{x}", "ours": "§±≥"})
            write_run(tmp_path / "runs", settings, outcome, folder=f"{len(norm)}/{norm[0]}{seed}")
    names = ["table2", "averages"]
    make(tmp_path, only=names)
    inputs = "\n".join(rf"\input{{{name}.tex}}" for name in names)
    (tmp_path / "out" / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "out" / "all.pdf").read_bytes().startswith(b"%PDF")
