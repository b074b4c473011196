"""SN - BN under changes of the protocol, on made-up runs whose answer is known."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from run_files import REPOSITORY, config, result, write_run
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
    own = {"norm.args": {"omega": ["in", "ln", "bn"], "instance_correction": 1}}
    write(root / "runs", "corrected", "sn", SN_CORRECTED, own)
    written = write_tables(root / "runs", root / "out", PAPER, ["variants"])
    with open(root / "out" / "variants.csv", newline="") as file:
        return {row["change"]: row for row in csv.DictReader(file)}, written.markdown


def test_a_row_for_each_change_and_one_for_bns_batch_average(
    table: tuple[dict[str, dict[str, str]], str],
) -> None:
    rows, markdown = table
    assert list(rows) == [
        "as most runs",
        "norm.args.instance_correction=1",
        "protocol.dropout=0.5",
        "BN by batch average",
    ]
    assert "mixed configs" not in markdown.split("###")[0]


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


def test_what_two_rows_share_cancels(table: tuple[dict[str, dict[str, str]], str]) -> None:
    corrected = table[0]["norm.args.instance_correction=1"]
    assert float(corrected["bn"]) == pytest.approx(fmean(BN))
    welch = stats.ttest_ind(SN_CORRECTED, SN, equal_var=False).confidence_interval()
    assert float(corrected["move_ci95_low"]) == pytest.approx(welch.low, abs=1e-5)
    by_batch = table[0]["BN by batch average"]
    assert float(by_batch["move"]) == pytest.approx(-5.0)
