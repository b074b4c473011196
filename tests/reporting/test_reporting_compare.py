"""compare_runs.py: how two trainings of the same runs agree, on made-up runs with known answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_files import REPOSITORY, config, epoch_rows, result, write_run

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.compare import compare_runs

TOPS = [90.0, 91.0, 92.0]  # two seeds differ by more than 3.93 in 5 % of cases
Change = Callable[[dict[str, Any]], None]


def write(root: Path, tops: list[float], change: Change = lambda row: None, **options: Any) -> Path:
    for seed, top1 in enumerate(tops):
        settings = config(seed=seed)
        settings["init"] = f"{root}/classifiers/seed{seed}"  # each folder has its own
        rows = [json.loads(line) for line in epoch_rows(settings, 3).splitlines()]
        for row in rows:
            row["step"] = 10 * row["epoch"]
            row["images_per_s"] = hash(str(root)) % 1000 + 1.0
            change(row)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_run(root, settings, result(settings, top1, **options), metrics=text)
    return root


def verdicts(text: str) -> list[str]:
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| BN")]
    return [row[5].strip() for row in rows]


def nudged(row: dict[str, Any]) -> None:
    if row["kind"] == "epoch" and row["epoch"] == 2:
        row["val"]["top1"] *= 1 + 1e-5


def moved(row: dict[str, Any]) -> None:
    if row["kind"] == "train" and row["epoch"] == 3:
        row["top1"] *= 1.01


@pytest.mark.parametrize(
    ("tops", "change", "expected", "since"),
    [
        (TOPS, lambda row: None, ["bit for bit"] * 3, "—"),
        (TOPS, nudged, ["within rounding"] * 3, "epoch, step 20"),
        (TOPS, moved, ["within the spread of seeds"] * 3, "train, step 30"),
        ([93.0, 90.0, 92.0], moved, ["within the spread of seeds"] * 3, "train, step 30"),
        (
            [90.0, 91.0, 96.5],
            lambda row: None,
            ["bit for bit", "bit for bit", "within the spread of seeds"],
            "evaluation, moving average",
        ),
        ([10.0, 11.0, 12.0], moved, ["beyond the spread of seeds"] * 3, "train, step 30"),
    ],
)
def test_verdicts(
    tmp_path: Path, tops: list[float], change: Change, expected: list[str], since: str
) -> None:
    first, second = write(tmp_path / "a", TOPS), write(tmp_path / "b", tops, change)
    text, agree = compare_runs(first, second)
    assert verdicts(text) == expected
    assert agree == ("beyond the spread of seeds" not in expected)
    assert since in text.splitlines()[4]
    assert "BN (8,2), resnet50_mini: mean " in text


def test_one_run_against_one_and_what_differs_in_provenance(tmp_path: Path) -> None:
    provenance = {"git_revision": "f" * 40, "hardware": {"instruction_sets": ["avx2", "fma3"]}}
    first = write(tmp_path / "a", TOPS[:1])
    second = write(tmp_path / "b", [93.0], moved, provenance=provenance)
    text, agree = compare_runs(first, second / "digits/resnet50_mini/bn/8x2/seed0")
    assert verdicts(text) == ["no; the spread of seeds is not known"] and agree
    assert "- hardware.instruction_sets: not recorded / ['avx2', 'fma3']" in text
    assert f"- git_revision: 0123456789abcdef / {'f' * 40}" in text


def test_runs_that_have_nothing_in_common(tmp_path: Path) -> None:
    first = write(tmp_path / "a", TOPS)
    other = config(norm="gn")
    for seed in range(2):
        write_run(tmp_path / "b", config("gn", seed=seed), result(other))
    with pytest.raises(UserError, match="no run of the same config and seed"):
        compare_runs(first, tmp_path / "b")


def test_the_script_fails_beyond_the_spread(tmp_path: Path) -> None:
    folders = write(tmp_path / "a", TOPS), write(tmp_path / "b", [10.0, 11.0, 12.0])
    script = [sys.executable, str(REPOSITORY / "scripts" / "compare_runs.py")]
    done = subprocess.run([*script, *map(str, folders)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    same = subprocess.run([*script, *map(str, folders[:1] * 2)], capture_output=True, text=True)
    assert same.returncode == 0
    assert "Nothing that is recorded of code, versions and hardware differs." in same.stdout
