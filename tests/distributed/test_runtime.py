"""Sessions, process groups and errors, with real processes and gloo."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from process_groups import run_programs
from session_program import attempt, fail_before_the_first_run, main, wait_alone

from sn_imagenet.distributed import (
    LostPeerError,
    choose_device,
    describe_precision,
    process_group,
    raise_on_all_ranks,
    report_lost_peers,
)
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.runs import RunInUseError
from sn_imagenet.session import session


def by_torchrun(case: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of session_program.py."""
    program = str(Path(__file__).with_name("session_program.py"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [sys.executable, *launcher, program, case],
        capture_output=True,
        text=True,
        timeout=600,  # far less than the half hour for which a collective waits
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_torchrun_does_not_cut_off_ranks_that_raise_the_same_error() -> None:
    """One rank reports the error late, the other exits late; torchrun signals remaining ranks."""
    done = by_torchrun("exit slowly")
    assert done.stderr.count("error: raised by all") == 1, done.stderr
    assert re.findall(r"exitcode +: (-?\d+)", done.stderr) == ["2", "2"], done.stderr


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("user error on one", 2, "error: raised by one rank"),
        ("crash on one", 1, "KeyError: 'crash of one rank'"),
    ],
)
def test_an_error_on_one_rank_ends_all(tmp_path: Path, case: str, code: int, message: str) -> None:
    """Even without torchrun, which would end the others."""
    waiting, failing = run_programs(2, main, tmp_path, case)
    assert failing.code == code
    assert message in failing.err
    assert waiting.code == 1
    assert "another process of this run has ended, and process 0 cannot continue" in waiting.err
    for ended in (waiting, failing):
        assert "the next run started" not in ended.out
        assert "group exists: False" in ended.out


@pytest.mark.parametrize(("world_size", "expected"), [(2, LostPeerError), (1, RuntimeError)])
def test_a_process_that_ends_while_others_connect_is_a_lost_peer(
    monkeypatch: pytest.MonkeyPatch, world_size: int, expected: type[Exception]
) -> None:
    """On a busy machine one may join, fail and end before another has joined (gloo's message)."""
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    with pytest.raises(expected), report_lost_peers():  # noqa: PT012
        assert not dist.is_initialized()
        raise RuntimeError(
            "Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:561] Connection closed "
            "by peer [127.0.0.1]:51329."
        )


@pytest.mark.parametrize("case", ["raised on one", "raised on all", "different on each"])
def test_an_error_on_all_ranks_is_reported_once_and_the_next_run_starts(
    tmp_path: Path, case: str
) -> None:
    first, second = run_programs(2, main, tmp_path, case)
    assert (first.code, second.code) == (2, 2)
    assert first.err == "error: raised in the block\n"
    assert second.err == ""
    assert first.out == "the next run started\ngroup exists: False\n"
    assert second.out == "group exists: False\n"


def test_a_session_without_errors(tmp_path: Path) -> None:
    first, second = run_programs(2, main, tmp_path, "no error")
    assert (first.code, second.code) == (0, 0)
    assert first.out == "rank 0's value is ('a', 0)\nthe next run started\ngroup exists: False\n"
    assert second.out == "group exists: False\n"


@pytest.mark.slow
def test_restarted_processes_do_not_connect_to_the_last_attempt(tmp_path: Path) -> None:
    """The store that torchrun keeps between attempts has the old addresses of its processes."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for number, late in enumerate((False, True)):
        for ended in run_programs(2, attempt, tmp_path / str(number), store.port, late):
            assert (ended.code, ended.out.splitlines()[-1:]) == (0, ["3"]), ended.err


def test_waiting_for_a_process_that_never_joins_times_out(tmp_path: Path) -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    waiting, _ = run_programs(2, wait_alone, tmp_path, store.port)
    assert waiting.code == 1 and "process 1 of 2 did not join in 0:00:01" in waiting.err


def test_an_error_before_the_first_run_is_printed_by_one_rank(tmp_path: Path) -> None:
    first, second = run_programs(2, fail_before_the_first_run, tmp_path)
    assert (first.code, second.code) == (1, 1)
    assert first.err == "no such option\n"
    assert second.err == ""


def test_the_most_severe_error_sets_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    errors = {
        "error: wait": RunInUseError("wait"),
        "error: fix me": UserError("fix me"),
        "Traceback": KeyError("a bug"),
    }
    in_use, user_error, crash = errors
    for first, second, code in (
        (in_use, user_error, 2), (user_error, in_use, 2), (crash, user_error, 1),
        (user_error, crash, 1), (in_use, in_use, 69),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended, session() as current:  # noqa: PT012
            with current.run():
                raise errors[first]
            with current.run():
                raise errors[second]
        assert ended.value.code == code
        printed = capsys.readouterr().err
        assert first in printed and second in printed


def test_raise_on_all_ranks_does_not_catch_other_errors() -> None:
    with pytest.raises(KeyError), raise_on_all_ranks():
        raise KeyError("a bug")
    with pytest.raises(UserError, match="fix me") as caught, raise_on_all_ranks():
        raise UserError("fix me")
    assert caught.value.raised_on_all_ranks


def test_a_missing_device_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
        with pytest.raises(ConfigError, match="no GPU of its own"):
            choose_device("auto")
    else:
        assert choose_device("auto").type == "cpu"
        with pytest.raises(ConfigError, match="no CUDA device is available; use auto or cpu"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("precision", "capability", "told"),
    [("fp32", (9, 0), True), ("bf16", (9, 0), False), ("fp32", (7, 0), False)],
)
def test_a_fast_gpu_in_fp32_gets_a_line(
    precision: str, capability: tuple[int, int], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    line = describe_precision(precision, torch.device("cuda"))
    assert (line is not None and "trainer.precision=bf16" in line) == told
    assert describe_precision(precision, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("device", "gpus", "expected"), [("auto", 2, 1), ("cpu", 2, None), ("auto", 1, None)]
)
def test_nccl_learns_the_device_of_each_rank(
    device: str, gpus: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all ranks of a machine or of none: to connect is collective."""
    for name, value in (("RANK", 1), ("WORLD_SIZE", 2), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(process_group, "connect_store", lambda timeout: dist.HashStore())
    monkeypatch.setattr(process_group, "_rendezvous_prefix", lambda store, timeout: "")
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **options: given.update(options)
    )
    process_group.init_distributed(device=device)
    assert given["device_id"] == (None if expected is None else torch.device("cuda", expected))


MACHINE_ERRORS = [
    (OSError(errno.EMFILE, "Too many open files", "x.jpg"), "ulimit -n"),
    (PermissionError(errno.EACCES, "Permission denied", "/data"), "Allow this user"),
    (RuntimeError("can't start new thread"), "ulimit -u"),
    (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        r"DataLoader worker \(pid 7\) is killed by signal: Killed\. .*--shm-size",
    ),
    (RuntimeError("Too many open files. Communication with the workers"), "ulimit -n"),
    (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), "--shm-size"),
    (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "data.workers"),
]


@pytest.mark.parametrize(("error", "advice"), MACHINE_ERRORS, ids=str)
def test_an_error_of_the_machine_is_one_line(
    error: Exception, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, session() as current, current.run():
        raise error
    text = capsys.readouterr().err
    assert ended.value.code == 1
    assert text.count("\n") == 1 and text.startswith("error: ")
    assert re.search(advice, text) and "Then run the same command again." in text
