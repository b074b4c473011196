"""Run directories: which process and which experiment may use them."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from disks import read_only, size_limit
from run_files import result

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.runs import (
    DIVERGED,
    FINISHED,
    NOT_EVALUATED,
    RunDirectory,
    RunError,
    checkpoint,
    config_differences,
    write_json,
    write_text,
)
from sn_imagenet.runs.lock import is_held, locked
from sn_imagenet.runs.reading import read_json
from sn_imagenet.runs.start import Start, claimed, open_run

Compose = Callable[..., ExperimentConfig]


def test_a_claim_writes_the_config_and_the_lock(tmp_path: Path, config: ExperimentConfig) -> None:
    directory = RunDirectory(tmp_path / "deep" / "run")
    with claimed(directory, config) as start:
        assert start == Start()
        assert directory.read_config() == config.to_dict()
        assert yaml.safe_load(directory.config.read_text()) == config.to_dict()
        holder = json.loads(directory.lock.read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
    assert sorted(p.name for p in directory.path.iterdir()) == ["config.yaml"]


def test_an_error_releases_the_lock(directory: RunDirectory, config: ExperimentConfig) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(directory, config):
        raise KeyboardInterrupt
    assert not directory.lock.exists()


def test_the_rest_of_a_killed_write_is_cleared(
    directory: RunDirectory, config: ExperimentConfig
) -> None:
    others = [directory.path / "top1.md.0123456789abcdef.tmp", directory.path / "own.tmp"]
    for path in others:  # tables are written without the lock
        path.touch()
    killed = patch.object(os, "replace", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        write_json(directory.result, {})
    assert len(list(directory.path.glob("result.json.*.tmp"))) == 1
    with claimed(directory, config):
        assert sorted(directory.path.glob("*.tmp")) == sorted(others)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"host": "here", "pi',
        b"[]",
        b"null",
        b"{}",
        b'{"host": "h", "pid": null}',
        b"\xff\x00",
    ],
)
def test_a_broken_lock_is_taken_over(
    directory: RunDirectory, config: ExperimentConfig, content: bytes
) -> None:
    directory.lock.write_bytes(content)
    with claimed(directory, config):
        assert json.loads(directory.lock.read_text())["pid"] == os.getpid()


def test_another_experiment_is_refused_with_the_difference(
    directory: RunDirectory, config: ExperimentConfig, composed: Compose
) -> None:
    directory.check(config)  # free
    with claimed(directory, config):
        directory.check(config)
    other = composed("data=digits", "model=resnet14_mini", "batch=8x4", "protocol.momentum=0.8")
    with pytest.raises(RunError) as caught:
        directory.check(other)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert str(directory.path) in lines[0]
    assert lines[1:-1] == [
        "batch.name: 8x2 (there) -> 8x4 (now)",
        "batch.samples_per_gpu: 2 (there) -> 4 (now)",
        "protocol.momentum: 0.9 (there) -> 0.8 (now)",
    ]
    assert "run_dir=" in lines[-1]


def test_a_name_that_is_not_utf8_is_refused(directory: RunDirectory, composed: Compose) -> None:
    """Python reads ``run_dir=läufe`` like this where it decodes names as ASCII."""
    here = composed("data=digits", "run_dir='l\udcc3\udca4ufe'")
    with pytest.raises(RunError, match=r"run_dir=läufe: cannot be encoded .* PYTHONUTF8=1"):
        directory.check(here)


PLACE_AND_SPEED = (
    "run_dir=elsewhere", "runs_dir=elsewhere", "evaluate=false", "+data.root=elsewhere",
    "data.workers=3", "trainer.device=cpu", "trainer.replicas_per_pass=2", "trainer.log_every=7",
    "trainer.eval_batch_size=3",
)  # fmt: skip
EXPERIMENT = (
    "norm=bn", "norm.args.omega=[in,ln]", "augment=none", "data.image_size=8", "seed=1",
    "model=resnet50_mini", "+model.args.stem_width=16", "protocol=official_code",
    "trainer.epochs=3", "trainer.max_steps=5", "trainer.precision=bf16", "calibration.samples=100",
)  # fmt: skip


@pytest.mark.parametrize("override", [*PLACE_AND_SPEED, *EXPERIMENT])
def test_only_options_of_the_experiment_are_a_difference(
    config: ExperimentConfig, composed: Compose, override: str
) -> None:
    changed = composed("data=digits", "model=resnet14_mini", "batch=8x2", override)
    assert changed.to_dict() != config.to_dict()
    differ = override in EXPERIMENT
    assert bool(config_differences(config.to_dict(), changed.to_dict())) == differ
    assert bool(config_differences(changed.to_dict(), config.to_dict())) == differ


def test_a_directory_without_config_is_not_a_run(directory: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"is not a run directory: it has no config\.yaml"):
        directory.read_config()


def test_one_method_name_has_one_class(tmp_path: Path, composed: Compose) -> None:
    def at(batch: str, *overrides: str) -> tuple[RunDirectory, ExperimentConfig]:
        config = composed("norm=bn", f"batch={batch}", f"runs_dir={tmp_path}", *overrides)
        return RunDirectory(Path(config.run_dir)), config

    first, config = at("8x2")
    with claimed(first, config):
        pass
    other, same = at("8x4")
    other.check(same)
    target = "norm.target=sn_imagenet.norms.SyncBatchNorm2d"
    for batch in ("8x2", "8x4"):
        directory, config = at(batch, target)
        with pytest.raises(RunError, match=rf"^{target}: .*8x2/seed0 is a run of .* norm\.name=$"):
            directory.check(config)
    directory, config = at("8x4", target, "norm.name=sync")
    directory.check(config)
    RunDirectory(tmp_path / "elsewhere").check(at("8x4", target)[1])


def test_the_method_of_the_heads_has_one_class_too(tmp_path: Path, composed: Compose) -> None:
    pair = composed("norm=bn", "norm.head=gn", "batch=8x2", f"runs_dir={tmp_path}")
    with claimed(RunDirectory(Path(pair.run_dir)), pair):
        pass
    pair.run_dir = pair.run_dir.replace("8x2", "8x4")
    RunDirectory(Path(pair.run_dir)).check(pair)
    assert pair.norm.head is not None
    pair.norm.head["target"] = "my.Norm"
    with pytest.raises(
        RunError, match=r"^norm\.head\.target=my\.Norm: .* its own norm\.head\.name=$"
    ):
        RunDirectory(Path(pair.run_dir)).check(pair)


def test_results_are_json_or_an_error(directory: RunDirectory) -> None:
    assert directory.read_result() is None
    write_json(directory.result, {"version": 2, "top1": 76.9})
    assert directory.read_result() == {"version": 2, "top1": 76.9}
    with pytest.raises(ValueError, match="JSON"):
        write_json(directory.result, {"loss": float("nan")})
    assert directory.read_result() == {"version": 2, "top1": 76.9}
    directory.result.write_text('{"version": 2,')
    with pytest.raises(RunError, match=r"result\.json cannot be read.*remove it"):
        directory.read_result()
    for other in ("{}", "[]", '{"version": 3}'):
        directory.result.write_text(other)
        with pytest.raises(RunError, match=r"result\.json is a result of version .*remove it"):
            directory.read_result()


def test_an_unwritable_path_is_one_clear_error(tmp_path: Path, config: ExperimentConfig) -> None:
    (tmp_path / "file").write_text("not a folder")
    for path, reason in (("file/run", "Not a directory.*run_dir="), ("file", "File exists")):
        claim = claimed(RunDirectory(tmp_path / path), config)
        with pytest.raises(RunError, match=rf"cannot write .*file.*: {reason}"), claim:
            pass


def test_a_read_only_folder(open_directory: RunDirectory, config: ExperimentConfig) -> None:
    with read_only(open_directory.path):
        for path, name in (
            (open_directory.path, "lock.json"),
            (open_directory.path / "new", "new"),
        ):
            claim = claimed(RunDirectory(path), config)
            with pytest.raises(RunError, match=f"cannot write .*{name}: Permission denied"), claim:
                pass
        with pytest.raises(RunError, match=r"cannot write .*result\.json: Permission denied"):
            write_json(open_directory.result, {})
    with claimed(open_directory, config):
        pass


def test_a_full_disk_leaves_the_old_file(directory: RunDirectory) -> None:
    write_json(directory.result, {"version": 2, "top1": 1})
    with (
        size_limit(1000),
        pytest.raises(RunError, match=r"cannot write .*result\.json: File too large; free some"),
    ):
        write_json(directory.result, {"top1": [0] * 1000})
    assert directory.read_result() == {"version": 2, "top1": 1}
    assert [p.name for p in directory.path.iterdir()] == ["result.json"]


def test_a_full_disk_during_the_claim(directory: RunDirectory, config: ExperimentConfig) -> None:
    """No half-written lock or config blocks the next start."""
    for size in (0, 300):
        message, claim = "cannot write .*free some space", claimed(directory, config)
        with size_limit(size), pytest.raises(RunError, match=message), claim:
            pass
        assert not directory.config.exists() and not directory.lock.exists()
    with claimed(directory, config):
        assert directory.read_config() == config.to_dict()


def _as_result(config: ExperimentConfig, **entries: Any) -> dict[str, Any]:
    return {**result(config.to_dict(), 80.0), **entries}


def test_a_start_finds_what_the_directory_holds(
    directory: RunDirectory, config: ExperimentConfig, tmp_path: Path
) -> None:
    """A failed result counts as none. Evaluations that do not complete the run are kept if it can
    resume.
    """
    finished = _as_result(config)
    other = [{**entry, "precision": "bf16"} for entry in finished["evaluations"]]
    unevaluated = {**finished, "evaluations": other}
    failed = {**finished, "status": "failed", "error": "no space"}
    with claimed(directory, config):
        pass
    checkpoint.save(directory.final, {"model": {}, "config": config.to_dict()})
    for file, resumes in ((None, False), (directory.previous, True)):
        if file is not None:
            file.touch()  # is only looked for, not read
        for content in (None, failed):
            if content is not None:
                write_json(directory.result, content)
            assert open_run(directory, config) == Start(resumes)
        write_json(directory.result, unevaluated)
        kept = tuple(other) if resumes else ()
        assert open_run(directory, config) == Start(resumes, evaluations=kept)
        only_trained = open_run(directory, replace(config, evaluate=False))
        assert only_trained.run is not None and only_trained.run.state == NOT_EVALUATED
        for content, state in (
            (finished, FINISHED),
            ({**finished, "status": "diverged"}, DIVERGED),
        ):
            write_json(directory.result, content)
            start = open_run(directory, config)
            assert start.run is not None and start.run.state == state
        directory.result.unlink()


def test_a_run_that_another_process_finishes_meanwhile_is_done(
    directory: RunDirectory, config: ExperimentConfig
) -> None:
    assert open_run(directory, config) == Start()
    write_json(directory.result, _as_result(config))
    with claimed(directory, config) as start:
        assert start.run is not None


@pytest.mark.parametrize("name", ["last.pt", "result.json", "config.yaml", "lock.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, kind):
    directory = RunDirectory(tmp_path)
    os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).symlink_to("/dev/zero")
    signal.alarm(20)  # a hang ends the test program
    try:
        assert not is_held(tmp_path / name)
        readers = {
            "last.pt": lambda: checkpoint.load(directory.last),
            "result.json": directory.read_result,
            "config.yaml": directory.read_config,
            "lock.json": locked(directory.lock).__enter__,
        }
        with pytest.raises((RunError, OSError), match="not a regular file"):
            readers[name]()
    finally:
        signal.alarm(0)


def test_whatever_is_written_is_read_again(tmp_path):
    """File names of other encodings have lone surrogates in Python."""
    name = os.fsdecode(b"/data/caf\xe9.jpg")
    content = {name: [name, {"inner": (name, 1)}], "plain": "é"}
    write_json(tmp_path / "file.json", content)
    read = read_json(tmp_path / "file.json")
    assert read["plain"] == "é" and read["/data/caf\\xe9.jpg"][0] == "/data/caf\\xe9.jpg"
    write_text(tmp_path / "file.md", f"| {name} | é |\n")
    assert (tmp_path / "file.md").read_text("utf-8") == "| /data/caf\\xe9.jpg | é |\n"
