"""The scripts in examples/, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_layer_in_a_network_of_ones_own() -> None:
    accuracy, *weights = run("examples/layer.py").splitlines()
    assert float(accuracy.split()[1]) > 80
    assert [line.replace(",", "").split()[::2] for line in weights] == [["in", "ln", "bn"]] * 2


@pytest.mark.slow
def test_a_method_of_ones_own_is_compared(tmp_path: Path) -> None:
    table = run("examples/own_method.py", tmp_path / "runs")
    assert [line for line in table.splitlines() if line.startswith("| half")], table


def make(goal: str) -> subprocess.CompletedProcess[str]:
    # As a shell starts it: without the flags that a make around the tests passes on.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", goal], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_explains_itself_and_refuses_an_unknown_study_before_it_installs() -> None:
    done = make("help")
    assert done.returncode == 0 and "make study-NAME" in done.stdout
    done = make("study-nope")
    assert done.returncode == 2 and done.stdout == ""
    assert "study-nope: no such study" in done.stderr and "cifar10_small" in done.stderr


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_help_is_usage_and_five_examples_on_one_screen(program: str) -> None:
    text = run(program, "--help")
    assert f"usage: python {program}" in text
    assert sum(line.startswith("  ") and f"{program} " in line for line in text.splitlines()) >= 5
    if program == "train.py":
        assert text.count("\n") <= 30
