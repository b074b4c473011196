"""The processes of an experiment, with real ones and gloo between them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from process_groups import run_programs
from session_program import alone, attempt, before_the_first_cell, main

from sn_imagenet.distributed import (
    LostPeerError,
    choose_device,
    raise_on_all_ranks,
    report_lost_peers,
    session,
)
from sn_imagenet.errors import EXIT_CODES, ConfigError, UserError
from sn_imagenet.runs import RunInUseError


def by_torchrun(case: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of session_program.py."""
    program = str(Path(__file__).with_name("session_program.py"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [sys.executable, *launcher, program, case],
        capture_output=True,
        text=True,
        timeout=600,  # far below the half hour that a collective would wait
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_torchrun_ends_the_others_where_one_rank_fails_alone() -> None:
    done = by_torchrun("user error on one")
    assert done.returncode != 0
    assert "error: met by one rank" in done.stderr
    assert "the next cell ran" not in done.stdout


@pytest.mark.slow
def test_torchrun_cuts_off_no_rank_that_ends_like_the_others() -> None:
    """One tells the error late, the other ends late: torchrun signals whoever is left."""
    done = by_torchrun("slowly")
    assert done.stderr.count("error: met by all") == 1, done.stderr
    assert re.findall(r"exitcode +: (-?\d+)", done.stderr) == ["2", "2"], done.stderr


@pytest.mark.parametrize(
    ("case", "code", "told"),
    [
        ("user error on one", 2, "error: met by one rank"),
        ("crash on one", 1, "KeyError: 'crash of one rank'"),
    ],
)
def test_an_error_on_one_rank_alone_ends_all(
    tmp_path: Path, case: str, code: int, told: str
) -> None:
    """Even without torchrun to end them."""
    waiting, failing = run_programs(2, main, tmp_path, case)
    assert failing.code == code
    assert told in failing.err
    assert waiting.code == 2
    assert "another process of this run has ended, and process 0 cannot continue" in waiting.err
    for ended in (waiting, failing):
        assert "the next cell ran" not in ended.out
        assert "group exists: False" in ended.out


@pytest.mark.parametrize(("world_size", "told"), [(2, LostPeerError), (1, RuntimeError)])
def test_a_process_that_ends_while_others_still_connect_is_told(
    monkeypatch: pytest.MonkeyPatch, world_size: int, told: type[Exception]
) -> None:
    """A busy machine lets one join, fail and end before another has joined: gloo's words, seen."""
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    with pytest.raises(told), report_lost_peers():  # noqa: PT012
        assert not dist.is_initialized()
        raise RuntimeError(
            "Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:561] Connection closed "
            "by peer [127.0.0.1]:51329."
        )


@pytest.mark.parametrize("case", ["agreed, of one", "agreed, of all", "agreed, of each its own"])
def test_an_error_that_all_agree_on_is_said_once_and_the_next_cell_runs(
    tmp_path: Path, case: str
) -> None:
    first, second = run_programs(2, main, tmp_path, case)
    assert (first.code, second.code) == (2, 2)
    assert first.err == "error: met in the block\n"
    assert second.err == ""
    assert first.out == "the next cell ran\ngroup exists: False\n"
    assert second.out == "group exists: False\n"


def test_all_well(tmp_path: Path) -> None:
    first, second = run_programs(2, main, tmp_path, "well")
    assert (first.code, second.code) == (0, 0)
    assert first.out == "rank 0's value is ('a', 0)\nthe next cell ran\ngroup exists: False\n"
    assert second.out == "group exists: False\n"


@pytest.mark.slow
def test_restarted_processes_do_not_take_the_last_attempt_for_each_other(tmp_path: Path) -> None:
    """In the store that torchrun keeps between attempts, its processes' old addresses remain."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for number, late in enumerate((False, True)):
        for ended in run_programs(2, attempt, tmp_path / str(number), store.port, late):
            assert (ended.code, ended.out) == (0, "3\n"), ended.err


def test_a_process_that_never_comes_ends_the_wait(tmp_path: Path) -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    waiting, _ = run_programs(2, alone, tmp_path, store.port)
    assert waiting.code == 1 and "process 1 of 2 did not join in 0:00:01" in waiting.err


def test_what_goes_wrong_before_the_first_cell_is_said_by_one_rank(tmp_path: Path) -> None:
    first, second = run_programs(2, before_the_first_cell, tmp_path)
    assert (first.code, second.code) == (1, 1)
    assert first.err == "no such option\n"
    assert second.err == ""


def test_exit_codes_tell_user_errors_from_crashes(capsys: pytest.CaptureFixture[str]) -> None:
    for error, code, told in (
        (UserError("mend me"), 2, "error: mend me"),
        (RunInUseError("wait"), 69, "error: wait"),
        (KeyError("a bug"), 1, "Traceback"),
    ):
        with pytest.raises(SystemExit) as ended, session() as current:  # noqa: PT012
            with current.run():
                raise error
            with current.run():
                pass  # a good cell afterwards mends nothing
        assert ended.value.code == code
        assert told in capsys.readouterr().err


def test_the_gravest_error_gives_the_code_which_is_left_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXIT_CODES, str(tmp_path))
    errors = [RunInUseError("wait"), UserError("mend me"), KeyError("a bug")]
    for first, second, code in ((0, 1, 2), (1, 0, 2), (2, 1, 1), (1, 2, 1), (0, 0, 69)):
        with pytest.raises(SystemExit) as ended, session() as current:  # noqa: PT012
            with current.run():
                raise errors[first]
            with current.run():
                raise errors[second]
        assert ended.value.code == code
        assert (tmp_path / "0").read_text() == str(code)


def test_a_crash_is_not_hidden_by_a_later_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, session() as current:  # noqa: PT012
        with current.run():
            raise KeyError("a bug")
        with current.run():
            raise UserError("mend me")
    assert ended.value.code != 0
    assert "a bug" in capsys.readouterr().err


def test_together_lets_other_errors_through() -> None:
    with pytest.raises(KeyError), raise_on_all_ranks():
        raise KeyError("a bug")
    with pytest.raises(UserError, match="mend me") as caught, raise_on_all_ranks():
        raise UserError("mend me")
    assert caught.value.raised_on_all_ranks


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
        with pytest.raises(ConfigError, match="no GPU of its own"):
            choose_device("auto")
    else:
        assert choose_device("auto").type == "cpu"
        with pytest.raises(ConfigError, match="no CUDA device is available; use auto or cpu"):
            choose_device("cuda")
