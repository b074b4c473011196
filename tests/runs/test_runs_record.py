"""States of run directories, with real files, locks and processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import REPOSITORY, config, epoch_rows, finished_run, result, write_run

from sn_imagenet.errors import UserError
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.runs import (
    DIVERGED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    UNREADABLE,
    Cell,
    Setting,
    find_runs,
    read_progress,
    read_run,
)
from sn_imagenet.runs.lock import locked
from sn_imagenet.runs.methods import BUILT_IN

EPOCH_3 = '{"kind": "epoch", "epoch": 3, "step": 261, "epochs": 10, "val": {"top1": 88.0}}\n'


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_finished_run_is_read_in_any_folder(tmp_path: Path) -> None:
    settings = config("sn", "8x2", seed=4)
    write_run(tmp_path, settings, result(settings, 92.5, 91.25), folder="anywhere/else")
    (run,) = find_runs(tmp_path).runs
    assert run.cell == Cell("digits", "resnet50_mini", "sn", Setting(8, 2))
    assert (run.seed, run.state, run.statistics) == (4, FINISHED, "batch_average")
    assert run.score_value() == 92.5
    assert run.score_value("moving_average") == 91.25
    assert len(run.weights) == 53
    assert run.departures == (("epochs", "100", "10"),)


@pytest.mark.parametrize(
    ("committed", "item", "paper"),
    [
        ("digits/runs/digits/resnet14_mini/brn", "warm-up of batch renormalization", "not stated"),
        ("sensitivity/runs/correction/digits/resnet14_mini/sn", "normalization arguments",
         "{'omega': ['in', 'ln', 'bn']}"),
        ("sensitivity/runs/lambda/digits/resnet14_mini/sn",
         "weight decay of the importance weights", "as for all parameters"),
    ],
)  # fmt: skip
def test_departures_of_older_runs_have_the_current_wording(
    committed: str, item: str, paper: str
) -> None:
    run = read_run(REPOSITORY / "results" / committed / "8x2" / "seed0")
    assert (item, paper) in [departure[:2] for departure in run.departures]


def test_running_when_the_process_lives(tmp_path: Path) -> None:
    path = write_run(tmp_path, config(), metrics=EPOCH_3)
    with locked(path / "lock.json"):
        run = read_run(path)
    assert (run.state, run.detail) == (RUNNING, "3/10")


def test_interrupted_when_the_process_is_dead(tmp_path: Path, dead_pid: int) -> None:
    lock = {"host": socket.gethostname(), "pid": dead_pid, "started": "now"}
    run = read_run(write_run(tmp_path, config(), lock=lock, metrics=EPOCH_3))
    assert (run.state, run.detail) == (INTERRUPTED, "3/10")


def test_progress_before_the_first_epoch_ends(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path, config(), metrics="")).detail == "0/10"


@pytest.mark.parametrize(
    ("status", "state", "detail"),
    [("diverged", DIVERGED, "loss nan at epoch 3, step 120"), ("failed", FAILED, "out of memory")],
)
def test_a_run_that_ends_without_a_result_number(
    tmp_path: Path, status: str, state: str, detail: str
) -> None:
    settings = config()
    run = read_run(write_run(tmp_path, settings, result(settings, status=status)))
    assert (run.state, run.detail, run.score_value()) == (state, detail, None)


@pytest.mark.parametrize(
    ("norm", "target", "method"),
    [
        ("bn", "sn_imagenet.norms.mixture.BatchNorm2d", "bn"),
        ("bn", "sn_imagenet.norms.SyncBatchNorm2d", "bn (sn_imagenet.norms.SyncBatchNorm2d)"),
        ("bn", "mine.BatchNorm2d", "bn (mine.BatchNorm2d)"),
        ("half", "mine.HalfNorm2d", "half"),
    ],
)
def test_another_class_under_a_built_in_name_is_another_method(
    tmp_path: Path, norm: str, target: str, method: str
) -> None:
    settings = config(norm)
    settings["norm"]["target"] = target
    directory = write_run(tmp_path, settings, result(settings))
    assert read_run(directory).cell.norm == method
    (directory / "result.json").unlink()
    assert read_run(directory).cell.norm == method


def test_the_built_in_names_are_those_of_the_classes() -> None:
    assert {name: method.__name__ for name, method in METHODS.items()} == BUILT_IN


@pytest.mark.parametrize(
    "text",
    ["", '{"version": 1, "sta', "[]", '{"version": 3}', '{"version": 2}', '{"version": 1}', "null"],
)
def test_a_bad_result_does_not_hide_the_others(tmp_path: Path, text: str) -> None:
    finished_run(tmp_path, 90.0, seed=0)
    bad = write_run(tmp_path, config(seed=1)) / "result.json"
    bad.write_text(text)
    runs, warnings = find_runs(tmp_path)
    assert [run.state for run in runs] == [FINISHED, UNREADABLE]
    assert runs[0].cell == runs[1].cell
    assert len(warnings) == 1
    assert str(bad) in warnings[0]


def test_malformed_entry_is_named(tmp_path: Path) -> None:
    settings = config()
    outcome = result(settings)
    del outcome["cell"]["seed"]
    write_run(tmp_path, settings, outcome)
    (warning,) = find_runs(tmp_path).warnings
    assert "no entry 'seed'" in warning


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "norm: bn", "lr: ${missing}"])
def test_bad_config_takes_its_cell_from_the_path(tmp_path: Path, text: str) -> None:
    directory = write_run(tmp_path, config("gn", "1x16", seed=2))
    (directory / "config.yaml").write_text(text)
    (run,), (warning,) = find_runs(tmp_path)
    assert run.cell == Cell("digits", "resnet50_mini", "gn", Setting(1, 16))
    assert (run.seed, run.state) == (2, UNREADABLE)
    assert "config.yaml" in warning


def test_the_path_also_names_the_task(tmp_path: Path) -> None:
    folder = "runs/digits+mine/resnet50_mini/sn/8x2/seed3"
    write_run(tmp_path, config(seed=3), folder=folder)
    (tmp_path / folder / "config.yaml").write_text("data: [")
    (run,) = find_runs(tmp_path).runs
    assert run.cell == Cell("digits", "resnet50_mini", "sn", Setting(8, 2), task="mine")


def test_a_class_of_ones_own_is_named_beside_that_of_the_heads(tmp_path: Path) -> None:
    settings = config("bn", "8x2")
    settings["norm"] |= {"target": "my.BN", "head": {"name": "gn", "target": "my.GN", "args": {}}}
    outcome = result(settings, 90.0)
    outcome["cell"]["norm"] = "bn+gn"
    write_run(tmp_path / "runs", settings, folder="a/unfinished")
    write_run(tmp_path / "runs", settings, outcome, folder="b/finished")
    names = {run.cell.norm for run in find_runs(tmp_path).runs}
    assert names == {"bn (my.BN)+gn (my.GN)"}


def test_a_run_without_a_known_cell_is_a_warning(tmp_path: Path) -> None:
    finished_run(tmp_path, 90.0)
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "config.yaml").write_text("something: else")
    runs, (warning,) = find_runs(tmp_path)
    assert len(runs) == 1
    assert str(stray / "config.yaml") in warning


def test_result_without_config_file(tmp_path: Path) -> None:
    directory = finished_run(tmp_path, 90.0)
    (directory / "config.yaml").unlink()
    assert read_run(directory).score_value() == 90.0


def test_hidden_folders_are_skipped(tmp_path: Path) -> None:
    directory = finished_run(tmp_path, 90.0)
    (directory / ".hydra").mkdir()
    (directory / ".hydra" / "config.yaml").write_text("norm: bn")
    assert len(find_runs(tmp_path).runs) == 1


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_runs(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no runs"):
        find_runs(tmp_path)


def test_settings() -> None:
    assert Setting.parse("8x32") == Setting(8, 32)
    assert (str(Setting(8, 32)), Setting(8, 32).name) == ("(8,32)", "8x32")
    for wrong in ("8x", "0x8", "8x-1", "8,32", "eight"):
        with pytest.raises(UserError, match=r"GPUs x samples"):
            Setting.parse(wrong)


def test_config_numbers_agree_between_yaml_and_json(tmp_path: Path) -> None:
    """1e-4 in YAML must be a number, or a running seed would differ from a finished one."""
    directory = write_run(tmp_path, config())
    text = (directory / "config.yaml").read_text()
    assert "0.0001" in text or "1e-4" in text.lower()
    (directory / "config.yaml").write_text(text.replace("0.0001", "1e-4"))
    assert read_run(directory).config["protocol"]["weight_decay"] == 1e-4
    json.dumps(read_run(directory).config)


@pytest.mark.parametrize(("norm", "own"), [("bn", "val"), ("sn", "calibrated"), ("gn", "val")])
def test_a_running_run_shows_top1_under_the_statistics_of_its_cell(
    norm: str, own: str, tmp_path: Path
) -> None:
    settings = config(norm, "8x2")
    rows = epoch_rows(settings, 4, calibrated=True)
    progress = read_progress(write_run(tmp_path, settings, metrics=rows))
    assert progress is not None
    assert progress.value == json.loads(rows.splitlines()[-1])[own]["top1"]


def test_a_locked_directory_is_running_before_it_has_a_config(tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    assert read_progress(tmp_path) is None
    with locked(lock):
        progress = read_progress(tmp_path)
    assert progress is not None and progress.state == RUNNING
    assert read_progress(tmp_path) is None
