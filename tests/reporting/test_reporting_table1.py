"""Table 1 as a document: the paper's row beneath each, with differences noted."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest
from run_files import PAPER

from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.table1 import complexity, differences, table1


def row(method: str = "bn", **entries: Any) -> dict[str, Any]:
    counted = {
        "method": method,
        "size": (4, 6, 3, 5),
        "params": ("γ", "β"),
        "parameters": 12,
        "parameters_formula": "2C",
        "hyperparameters": ("ϵ", "p"),
        "statistics": ("μ", "σ", "μ′", "σ′"),
        "members": ("bn",),
        "count": 12,
        "count_formula": "2C",
        "exponents": {"N": 1.01, "C": 1.0, "HW": 0.99},
        "work": 4000,
    }
    return {**counted, **entries}


def test_the_papers_rows_are_read_as_printed() -> None:
    paper = read_paper(PAPER).table1
    assert set(paper) == {"bn", "in", "ln", "gn", "brn", "bkn", "wn", "sn"}
    assert paper["sn"]["count"] == "2C + 2N + 2CN" and paper["sn"]["parameters"] == "2C + 6"
    assert paper["bkn"]["complexity"] == "NC^2HW" and paper["wn"]["count"] is None


@pytest.mark.parametrize(
    ("entries", "differing"),
    [
        ({}, []),
        ({"parameters_formula": "6 + 2C"}, ["parameters"]),
        ({"hyperparameters": ("p", "ϵ", "Ω")}, ["hyperparameters"]),
        ({"statistics": ("μ", "σ")}, ["statistics"]),
        ({"exponents": {"N": 1.0, "C": 2.0, "HW": 1.0}}, ["complexity"]),
        ({"exponents": None}, ["complexity"]),
        ({"count_formula": "2NC", "params": ("γ",)}, ["params", "count"]),
        # Order is no difference.
        ({"method": "sn", "params": ("w", "γ", "β"), "parameters_formula": "6 + 2C",
          "statistics": ("σ_k", "μ_k"), "count_formula": "2NC + 2N + 2C"}, []),
    ],
)  # fmt: skip
def test_differences_from_the_paper(entries: dict[str, Any], differing: list[str]) -> None:
    ours = row(**entries)
    assert differences(ours, read_paper(PAPER).table1[ours["method"]]) == differing
    assert differences(ours, None) == []


@pytest.mark.parametrize(
    ("exponents", "expected"),
    [
        ({"N": 1.0, "C": 1.98, "HW": 1.02}, "NC^2HW"),
        ({"N": 0.01, "C": 1.37, "HW": 1.0}, "C^1.37HW"),
        ({"N": 0.0, "C": 0.0, "HW": 0.0}, "1"),
        (None, None),
    ],
)
def test_complexity(exponents: dict[str, float] | None, expected: str | None) -> None:
    assert complexity(exponents) == expected


def test_the_document() -> None:
    rows = [row(), row("brn", hyperparameters=("p", "ϵ", "r", "d", "warmup_steps"))]
    document = table1([*rows, row("sync_bn")], read_paper(PAPER).table1)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in document.markdown.splitlines()
        if line.startswith("|")
    ]
    labels = [line[0] for line in lines[2:]]
    assert labels[:5] == ["BN", "– paper", "BRN", "– paper", "SyncBN"]
    # Methods that the paper lists and the modules do not.
    assert labels[5::2] == ["IN", "LN", "GN", "BKN", "WN", "SN"]
    assert lines[2][1:7] == ["γ, β", "2C = 12", "ϵ, p", "μ, σ, μ′, σ′", "O(NCHW)", "2C = 12"]
    assert [line[7] for line in lines[2:4]] == ["—", "classification, detection"]
    assert lines[4][3] == "p, ϵ, r, d, warmup_steps ≠"
    (note,) = [line for line in document.markdown.splitlines() if line.startswith("- BRN")]
    assert "p, ϵ, r, d in the paper: the steps are the end points of Ioffe's" in note
    assert document.text(notes=True).startswith("Table 1. ")

    for entry in csv.DictReader(io.StringIO(document.csv)):
        assert entry["differs"] == ("hyperparameters" if entry["method"] == "brn" else "")
        assert float(entry["exponent_N"]) == 1.01
    assert not re.search(r"[γβϵμσΣΩ′≠]", document.latex)
    assert document.latex.count(r"\\") >= len(lines) - 1
