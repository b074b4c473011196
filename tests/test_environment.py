"""The variables of torchrun: checked together, before all else, by every entry point."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sn_imagenet.environment import check_environment
from sn_imagenet.errors import UserError

ROOT = Path(__file__).parents[1]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SCRIPTS = sorted(str(script.relative_to(ROOT)) for script in ROOT.glob("scripts/*.py"))
HERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def environment(**variables: str) -> dict[str, str]:
    others = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    return {**others, "OMP_NUM_THREADS": "1", **variables}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, r"RANK=1: must be below WORLD_SIZE, which is not set \(default 1\)"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK=1: .*WORLD_SIZE=1.*unset RANK WORLD_SIZE"),
        ({"RANK": "abc"}, "RANK=abc: expected a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1: expected a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected at least 1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: needs RANK and MASTER_ADDR and MASTER_PORT too"),
        ({"WORLD_SIZE": "2", "RANK": "1", **HERE, "MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: expected at most 65535"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
        ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8: expected at most WORLD_SIZE=1"),
    ],
    ids=str,
)
def test_variables_that_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(os, "environ", environment(**variables))
    with pytest.raises(UserError, match=message):
        check_environment()


def test_variables_as_torchrun_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    local = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for variables in ({}, {"RANK": "3", "WORLD_SIZE": "4", **local, **HERE}, HERE, {"RANK": ""}):
        monkeypatch.setattr(os, "environ", environment(**variables))
        check_environment()


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", *SCRIPTS])
def test_every_entry_point_checks_them_first(script: str) -> None:
    program = (
        "import runpy, sys\n"
        "try:\n"
        f"    runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'hydra' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(RANK="3"),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("2 "), done.stdout + done.stderr
    assert done.stderr.startswith("error: environment variable RANK=3: "), done.stderr
    assert done.stderr.count("\n") == 1


def _alone(rank: int, *overrides: str, **variables: str) -> subprocess.Popen[str]:
    """One of two processes, whose peer never starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process_of_two = {**HERE, "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
    process_of_two |= variables
    return subprocess.Popen(
        [sys.executable, "train.py", "data=digits", "model=resnet14_mini", *overrides],
        cwd=ROOT,
        env=environment(**process_of_two),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("rank", "address"), [(0, "127.0.0.1"), (1, "127.0.0.1"), (0, "no.invalid")]
)
def test_a_process_says_for_whom_it_waits_and_obeys_signals(
    rank: int, address: str, tmp_path: Path
) -> None:
    process = _alone(rank, "batch=8x2", f"runs_dir={tmp_path}", MASTER_ADDR=address)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        peer = f"for process {1 - rank} of 2 to join" if address == "127.0.0.1" else "to listen"
        assert f"process {rank} waits {peer} at {address}:" in line
        process.send_signal(signal.SIGTERM)
        before = time.monotonic()
        process.communicate(timeout=60)
        assert time.monotonic() - before < 20
        assert process.returncode == os.EX_TEMPFAIL
    finally:
        process.kill()


@pytest.mark.slow
def test_an_error_is_reported_even_without_rank_0() -> None:
    _, error = _alone(1, "norm=sm").communicate(timeout=200)
    assert error.count("error: norm=sm: unknown choice") == 1


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = _alone(0, "batch=8x2", MASTER_PORT=port)
        _, error = process.communicate(timeout=200)
    assert process.returncode == 2
    assert error.count("\n") == 1
    assert f"MASTER_PORT={port}: cannot listen there" in error
    assert "choose another port" in error
