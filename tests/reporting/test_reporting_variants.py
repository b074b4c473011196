"""SN - BN under changes of the protocol, on made-up runs with known answers."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from run_files import REPOSITORY, config, markdown_of, result, write_run
from scipy import stats

from sn_imagenet.reporting.tables import write_tables

PAPER = REPOSITORY / "results" / "paper.yaml"
BN, SN = [80.0, 81.0, 82.5], [84.0, 85.5, 85.0]
BN_DROPPED, SN_DROPPED = [78.0, 80.0, 79.5], [86.0, 86.5, 87.5]
SN_CORRECTED = [83.0, 84.0, 84.5]


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
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, str]], str]:
    root = tmp_path_factory.mktemp("variants")
    write(root / "runs", "plain", "bn", BN)
    write(root / "runs", "plain", "sn", SN)
    write(root / "runs", "dropped", "bn", BN_DROPPED, {"protocol.dropout": 0.5})
    write(root / "runs", "dropped", "sn", SN_DROPPED, {"protocol.dropout": 0.5})
    write(root / "runs", "undecayed", "sn", SN_DROPPED, {"protocol.lambda_weight_decay": 0.0})
    own = {"norm.args": {"omega": ["in", "ln", "bn"], "instance_correction": 1}}
    write(root / "runs", "corrected", "sn", SN_CORRECTED, own)
    written = write_tables(root / "runs", root / "out", PAPER, ["variants"])
    assert not written.warnings
    with open(root / "out" / "variants.csv", newline="") as file:
        return {row["change"]: row for row in csv.DictReader(file)}, markdown_of(written)


def test_a_row_for_each_change_and_one_for_bns_batch_average(
    table: tuple[dict[str, dict[str, str]], str],
) -> None:
    rows, markdown = table
    assert list(rows) == [
        "as most runs",
        "norm.args.instance_correction=1",
        "protocol.dropout=0.5",
        "protocol.lambda_weight_decay=0.0",
        "BN by batch average",
    ]
    assert "mixed configs" not in markdown
    assert "not seeds of one experiment" not in markdown


def test_the_move_is_welchs_over_the_four_cells(
    table: tuple[dict[str, dict[str, str]], str],
) -> None:
    row = table[0]["protocol.dropout=0.5"]
    assert float(row["difference"]) == pytest.approx(fmean(SN_DROPPED) - fmean(BN_DROPPED))
    assert float(row["move"]) == pytest.approx(
        fmean(SN_DROPPED) - fmean(BN_DROPPED) - fmean(SN) + fmean(BN)
    )
    groups = [SN_DROPPED, BN_DROPPED, SN, BN]
    parts = [stats.sem(group) ** 2 for group in groups]
    degrees = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    half = stats.t.ppf(0.975, degrees) * sum(parts) ** 0.5
    assert float(row["move_ci95_high"]) - float(row["move"]) == pytest.approx(half, abs=1e-5)


def test_runs_shared_by_two_rows_cancel(table: tuple[dict[str, dict[str, str]], str]) -> None:
    corrected = table[0]["norm.args.instance_correction=1"]
    assert float(corrected["bn"]) == pytest.approx(fmean(BN))
    welch = stats.ttest_ind(SN_CORRECTED, SN, equal_var=False).confidence_interval()
    assert float(corrected["move_ci95_low"]) == pytest.approx(welch.low, abs=1e-5)
    undecayed = table[0]["protocol.lambda_weight_decay=0.0"]  # BN has no lambdas
    assert float(undecayed["bn"]) == pytest.approx(fmean(BN))
    assert float(undecayed["move"]) == pytest.approx(fmean(SN_DROPPED) - fmean(SN))
    by_batch = table[0]["BN by batch average"]
    assert float(by_batch["move"]) == pytest.approx(-5.0)


def test_runs_that_are_not_seeds_of_one_experiment_are_not_averaged(tmp_path: Path) -> None:
    write(tmp_path / "runs", "plain", "bn", BN)
    write(tmp_path / "runs", "plain", "sn", SN)
    write(tmp_path / "runs", "again", "sn", SN)
    written = write_tables(tmp_path / "runs", tmp_path / "out", PAPER, ["variants"])
    (line,) = written.warnings
    assert line.startswith("as most runs (8,2): not averaged")
    assert "seed 0 occurs more than once" in line


def test_networks_are_compared_with_the_first(tmp_path: Path) -> None:
    values = {"resnet14_mini": (BN, SN), "resnet101": (BN_DROPPED, SN_DROPPED)}
    for model, (bn, sn) in values.items():
        write(tmp_path / "runs", model, "bn", bn, {"model.name": model})
        write(tmp_path / "runs", model, "sn", sn, {"model.name": model})
    written = write_tables(tmp_path / "runs", tmp_path / "out", PAPER, ["networks"])
    assert not written.warnings
    assert "2 networks" in written.text
    with open(tmp_path / "out" / "networks.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["model"], second["model"]) == ("resnet14_mini", "resnet101")
    assert first["move"] == ""
    assert float(second["difference"]) == pytest.approx(fmean(SN_DROPPED) - fmean(BN_DROPPED))
    moved = fmean(SN_DROPPED) - fmean(BN_DROPPED) - fmean(SN) + fmean(BN)
    assert float(second["move"]) == pytest.approx(moved)
