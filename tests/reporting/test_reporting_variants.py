"""SN - BN under changes of the protocol, on made-up runs with known answers."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from run_files import PAPER, config, csv_rows, markdown_of, result, write_run
from scipy import stats

from sn_imagenet.reporting.tables import write_tables

BN, SN = [80.0, 81.0, 82.5], [84.0, 85.5, 85.0]
BN_DROPPED, SN_DROPPED = [78.0, 80.0, 79.5], [86.0, 86.5, 87.5]
SN_CORRECTED = [83.0, 84.0, 84.5]
Rows = dict[tuple[str, str], dict[str, str]]  # (change, number) -> row of the CSV


def write(
    root: Path, name: str, norm: str, values: list[float], change: dict[str, Any] | None = None
) -> None:
    for seed, value in enumerate(values):
        settings = config(norm, "8x2", seed)
        for key, changed in (change or {}).items():
            section, _, entry = key.partition(".")
            settings[section][entry] = changed
        settings["run_dir"] = f"runs/{name}/{norm}/8x2/seed{seed}"
        other = value + 5 if norm == "bn" else None
        write_run(root, settings, result(settings, value, other_top1=other))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, str]:
    root = tmp_path_factory.mktemp("variants")
    write(root / "runs", "plain", "bn", BN)
    write(root / "runs", "plain", "sn", SN)
    write(root / "runs", "dropped", "bn", BN_DROPPED, {"protocol.dropout": 0.5})
    write(root / "runs", "dropped", "sn", SN_DROPPED, {"protocol.dropout": 0.5})
    write(root / "runs", "undecayed", "sn", SN_DROPPED, {"protocol.lambda_weight_decay": 0.0})
    own = {"norm.args": {"omega": ["in", "ln", "bn"], "instance_correction": 1}}
    write(root / "runs", "corrected", "sn", SN_CORRECTED, own)
    faster = {"norm.own_parameters": {"lr_scale": 10.0}}
    write(root / "runs", "faster", "sn", SN_CORRECTED, faster)
    written = write_tables(root / "runs", root / "out", PAPER, ["variants"])
    assert not written.warnings
    return csv_rows(root / "out" / "variants.csv", "change", "number"), markdown_of(written)


def mean(rows: Rows, change: str, number: str) -> float:
    return float(rows[change, number]["mean"])


def test_a_row_for_each_change_and_one_for_bns_batch_average(table: tuple[Rows, str]) -> None:
    rows, markdown = table
    assert list(dict.fromkeys(change for change, _ in rows)) == [
        "as most runs",
        "norm.args.instance_correction=1",
        "norm.own_parameters.lr_scale=10.0",
        "protocol.dropout=0.5",
        "protocol.lambda_weight_decay=0.0",
        "BN by batch average",
    ]
    assert "mixed configs" not in markdown
    assert "not seeds of one experiment" not in markdown


def test_the_move_is_welchs_over_the_four_cells(table: tuple[Rows, str]) -> None:
    rows, changed = table[0], "protocol.dropout=0.5"
    difference = fmean(SN_DROPPED) - fmean(BN_DROPPED)
    assert mean(rows, changed, "SN-BN") == pytest.approx(difference)
    row = rows[changed, "moves it by"]
    assert float(row["mean"]) == pytest.approx(difference - fmean(SN) + fmean(BN))
    groups = [SN_DROPPED, BN_DROPPED, SN, BN]
    parts = [stats.sem(group) ** 2 for group in groups]
    degrees = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    half = stats.t.ppf(0.975, degrees) * sum(parts) ** 0.5
    assert float(row["ci95_high"]) - float(row["mean"]) == pytest.approx(half, abs=1e-5)


def test_runs_shared_by_two_rows_cancel(table: tuple[Rows, str]) -> None:
    rows, corrected, undecayed = (
        table[0], "norm.args.instance_correction=1", "protocol.lambda_weight_decay=0.0"
    )  # fmt: skip
    assert mean(rows, corrected, "BN") == pytest.approx(fmean(BN))
    welch = stats.ttest_ind(SN_CORRECTED, SN, equal_var=False).confidence_interval()
    low = float(rows[corrected, "moves it by"]["ci95_low"])
    assert low == pytest.approx(welch.low, abs=1e-5)
    assert mean(rows, undecayed, "BN") == pytest.approx(fmean(BN))  # which has no lambdas
    assert mean(rows, undecayed, "moves it by") == pytest.approx(fmean(SN_DROPPED) - fmean(SN))
    assert mean(rows, "BN by batch average", "moves it by") == pytest.approx(-5.0)


def test_runs_that_are_not_seeds_of_one_experiment_are_not_averaged(tmp_path: Path) -> None:
    write(tmp_path / "runs", "plain", "bn", BN)
    write(tmp_path / "runs", "plain", "sn", SN)
    write(tmp_path / "runs", "again", "sn", SN)
    written = write_tables(tmp_path / "runs", tmp_path / "out", PAPER, ["variants"])
    (line,) = written.warnings
    assert line.startswith("as most runs (8,2): not averaged")
    assert "seed 0 occurs more than once" in line


def test_a_network_is_a_change(tmp_path: Path) -> None:
    values = {"resnet101": (BN, SN), "resnet14_mini": (BN_DROPPED, SN_DROPPED)}
    for model, (bn, sn) in values.items():
        write(tmp_path / "runs", model, "bn", bn, {"model.name": model})
        write(tmp_path / "runs", model, "sn", sn, {"model.name": model})
    written = write_tables(tmp_path / "runs", tmp_path / "out", PAPER, ["variants"])
    assert not written.warnings
    assert "2 networks" in written.text
    rows = csv_rows(tmp_path / "out" / "variants.csv", "change", "number")
    assert rows["as most runs (resnet101)", "moves it by"]["mean"] == ""
    moved = fmean(SN_DROPPED) - fmean(BN_DROPPED) - fmean(SN) + fmean(BN)
    assert mean(rows, 'model.name="resnet14_mini"', "moves it by") == pytest.approx(moved)
