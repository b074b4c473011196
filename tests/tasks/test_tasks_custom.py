"""Two tasks of a user, each in one file: trained, killed, resumed, swept, evaluated, tabulated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from sn_imagenet.sweeps.pool import process_tree

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TIMES = ("images_per_s", "data_wait_pct")
DATA = ("data=digits", "data.subset=0.2", "model=resnet14_mini", "batch=4x8", "tracker=none")
REGRESSION = (*DATA, "task=regression", "trainer.epochs=null", "trainer.max_steps=20",
              "trainer.validate_every=8", "trainer.log_every=1")  # fmt: skip
TWO_PHASE = (*DATA, "task=two_phase", "trainer.epochs=2", "trainer.log_every=1")
TASKS = {"regression": REGRESSION, "two_phase": TWO_PHASE}
SCORES = {"regression": "mae", "two_phase": "median_error"}
STEPS = {"regression": 20, "two_phase": 32}  # two epochs of two phases of eight steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's config folder with both tasks."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "task").mkdir()
    for name, target in (("regression", "Regression"), ("two_phase", "TwoPhase")):
        text = f"name: {name}\ntarget: {name}_task.{target}\n"
        text += "learning_rate: 0.01\n" if name == "regression" else ""
        (folder / "task" / f"{name}.yaml").write_text(text)
    (folder / "norm").mkdir()
    (folder / "norm" / "mine.yaml").write_text("defaults: [gn, _self_]\nname: mine\n")
    return folder


def start(configs: Path, *words: object, processes: int = 1) -> subprocess.Popen[str]:
    script, *arguments = map(str, words)
    line = [sys.executable]
    if processes > 1:
        line += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    config_dir = [f"--config-dir={configs}"] if script == "train.py" else []
    python_path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
    return subprocess.Popen(
        [*line, str(ROOT / script), *config_dir, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(configs: Path, *words: object, processes: int = 1, code: int = 0) -> str:
    process = start(configs, *words, processes=processes)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def rows(run_dir: Path) -> list[dict[str, Any]]:
    own, *lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(own)["kind"] == "run"
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def kill_at(step: int, run_dir: Path, configs: Path, *words: object, processes: int = 1) -> None:
    """Start a training and kill all its processes once it has logged ``step``."""
    process = start(configs, *words, processes=processes)
    metrics = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            for one in process_tree(process.pid):  # torchrun's processes have sessions of their own
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()


def check_resumed(
    whole: Path,
    steps: Sequence[int],
    run_dir: Path,
    configs: Path,
    *words: object,
    processes: int = 1,
) -> None:
    """Kill a training at ``steps``, resume it, and compare it bit for bit with the run ``whole``,
    which was not interrupted."""
    line = (*words, "checkpoint.minutes=0", f"run_dir={run_dir}")
    for step in steps:
        kill_at(step, run_dir, configs, *line, processes=processes)
    run(configs, *line, processes=processes)
    assert rows(run_dir) == rows(whole)
    weights, expected = (torch.load(path / "final.pt")["model"] for path in (run_dir, whole))
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def finished(configs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of each task."""
    folder = tmp_path_factory.mktemp("finished")
    for name, overrides in TASKS.items():
        run(configs, "train.py", *overrides, "norm=sn", f"run_dir={folder / name}")
    return {name: folder / name for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_trained_and_evaluated_by_its_score(finished: dict[str, Path], name: str) -> None:
    record, key = result(finished[name]), SCORES[name]
    assert record["status"] == "finished" and record["score"]["key"] == key
    assert record["config"]["task"]["name"] == name
    statistics = [evaluation["statistics"] for evaluation in record["evaluations"]]
    assert statistics == ["moving_average", "batch_average"]
    errors = [evaluation[key] for evaluation in record["evaluations"]]
    assert all(0 < error < 4.5 for error in errors)
    train_rows = [row for row in rows(finished[name]) if row["kind"] == "train"]
    assert [row["step"] for row in train_rows] == list(range(1, STEPS[name] + 1))
    assert train_rows[-1]["loss"] < train_rows[0]["loss"]


def test_a_regression_warms_up_and_validates_at_its_interval(finished: dict[str, Path]) -> None:
    records = rows(finished["regression"])
    rates = [row["lr"] for row in records if row["kind"] == "train"]
    assert rates == [0.01 * min(1, step / 10) for step in range(20)]
    validated = [(row["step"], row["val"]["seen"]) for row in records if "val" in row]
    assert validated == [(8, 400), (16, 400)]
    errors = [row for row in records if row["kind"] == "train"]
    assert all(row["absolute_error"] > 0 for row in errors)


def test_the_batch_average_is_validated_at_an_interval_of_validations(
    configs: Path, tmp_path: Path
) -> None:
    command = ("train.py", *REGRESSION, "norm=bn", "calibration.samples=64", "evaluate=false")
    run_dir = tmp_path / "second"
    run(configs, *command, "calibration.every=2", f"run_dir={run_dir}")
    assert [(row["step"], "calibrated" in row) for row in rows(run_dir) if "val" in row] == [
        (8, False),
        (16, True),
    ]
    output = run(configs, *command, "calibration.every=3", f"run_dir={tmp_path / 'no'}", code=2)
    assert "calibration.every=3: counts validations during training, and there is no" in output


def test_each_phase_uses_its_optimizer_and_no_validation_set(finished: dict[str, Path]) -> None:
    records = rows(finished["two_phase"])
    assert not [row for row in records if "val" in row]
    rates = [row["lr"] for row in records if row["kind"] == "train"]
    assert rates[:8] == [0.01] * 8
    assert rates[8:16] == [0.001 * (1 + step / 32) for step in range(8, 16)]
    assert rates[16:24] == [0.01] * 8
    fingerprint = result(finished["two_phase"])["provenance"]["data_fingerprint"]
    assert list(fingerprint) == ["train"]


@pytest.mark.parametrize(
    ("name", "steps"), [("regression", (6, 14)), ("two_phase", (4, 12, 20, 28))]
)
def test_a_killed_run_resumes_bit_for_bit(
    configs: Path, finished: dict[str, Path], tmp_path: Path, name: str, steps: tuple[int, ...]
) -> None:
    command = ("train.py", *TASKS[name], "norm=sn")
    check_resumed(finished[name], steps, tmp_path / name, configs, *command)


def test_two_processes_train_and_gather_as_one(
    configs: Path, finished: dict[str, Path], tmp_path: Path
) -> None:
    """The noise is drawn by (seed, step, replica), the median is over both ranks' errors."""
    for name, overrides in TASKS.items():
        command = ("train.py", *overrides, "norm=sn", "checkpoint.minutes=0",
                   f"run_dir={tmp_path / name}")  # fmt: skip
        if name == "two_phase":
            kill_at(12, tmp_path / name, configs, *command, processes=2)
        run(configs, *command, processes=2)
        ours, theirs = rows(tmp_path / name), rows(finished[name])
        assert [(row["kind"], row["step"]) for row in ours] == [
            (row["kind"], row["step"]) for row in theirs
        ]
        assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)
        for mine, other in zip(ours, theirs, strict=True):  # rounding differences grow
            assert mine.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=0.25)
        evaluated, expected = (
            result(folder)["evaluations"][0] for folder in (tmp_path / name, finished[name])
        )
        assert evaluated["seen"] == expected["seen"]
        assert evaluated[SCORES[name]] == pytest.approx(expected[SCORES[name]], rel=0.25)


def test_an_evaluation_writes_files_of_a_tasks_own(
    configs: Path, finished: dict[str, Path], tmp_path: Path
) -> None:
    run_dir = shutil.copytree(finished["two_phase"], tmp_path / "run")
    run(configs, "evaluate.py", f"run={run_dir}", "+artifacts.errors=errors.json")
    errors = json.loads((run_dir / "errors.json").read_text())["moving_average"]
    evaluation = result(run_dir)["evaluations"][0]
    assert (len(errors), statistics.median(errors)) == (
        evaluation["seen"],
        evaluation["median_error"],
    )
    for option in ("+artifacts.boxes=boxes.json", "per_class=classes.csv"):
        output = run(configs, "evaluate.py", f"run={run_dir}", option, code=2)
        kind = option.removeprefix("+artifacts.").partition("=")[0]
        assert f"artifacts.{kind}: the task of {run_dir} writes no such file" in output
        assert "expected one of errors" in output and "Traceback" not in output
    output = run(configs, "evaluate.py", f"run={run_dir}", "artifacts.errors=a.json", code=2)
    assert "to add it, write +artifacts.errors=a.json" in output


@pytest.mark.parametrize(
    ("name", "heading", "done"),
    [("regression", "MAE", "20/20 steps"), ("two_phase", "median error", "2/2")],
)
def test_a_task_is_swept_evaluated_again_and_tabulated(
    configs: Path, tmp_path: Path, name: str, heading: str, done: str
) -> None:
    runs = tmp_path / "runs"
    output = run(configs, "train.py", "-m", "hydra/launcher=local", *TASKS[name], "norm=bn,gn",
                 "seed=0,1", f"runs_dir={runs}")  # fmt: skip
    assert "4 runs: 4 finished" in output
    run_dir = runs / f"digits+{name}/resnet14_mini/bn/4x8/seed0"
    run(configs, "evaluate.py", f"run={run_dir}", "calibration.samples=64")
    evaluations = result(run_dir)["evaluations"]
    assert [e["by"] for e in evaluations] == ["training"] * 2 + ["evaluate.py"] * 2
    assert evaluations[2][SCORES[name]] == evaluations[0][SCORES[name]]
    table = run(configs, "scripts/make_tables.py", "--runs", runs, "--out", tmp_path / "tables")
    assert heading.lower() in table.lower() and "(4,8)" in table
    status = run(configs, "scripts/sweep_status.py", "--runs", runs)
    assert done in status and heading in status


def test_training_starts_from_the_weights_of_a_run(
    configs: Path, finished: dict[str, Path], tmp_path: Path
) -> None:
    source, target = finished["two_phase"], tmp_path / "two_phase"
    few = ("norm=sn", "trainer.epochs=1", "trainer.max_steps=1", f"init={source}")
    output = run(configs, "train.py", *TWO_PHASE, *few, "evaluate=false", f"run_dir={target}")
    assert f"starting from {source}\n" in output
    first, last = rows(target)[0]["loss"], [row for row in rows(source) if "loss" in row][-1]
    assert first < 2 * last["loss"] + 5 < rows(source)[0]["loss"]
    words = ("train.py", *REGRESSION, f"run_dir={tmp_path / 'other'}", f"init={source}", "norm=sn")
    output = run(configs, *words, code=2)
    assert f"init={source}: its network, task=two_phase" in output
    assert "bn1.bias missing there, [16] here" in output
    words = ("train.py", *DATA, *few[:-1], f"init={finished['regression']}", "evaluate=false")
    output = run(configs, *words, f"run_dir={tmp_path / 'classes'}")
    assert "a new fc, because its classes differ" in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("+task.rate=1",),
            "task=regression: Regression.__init__() got an unexpected keyword argument 'rate'",
        ),
        (("task.target=regression_task.MeanAbsoluteError",), "expected a subclass of"),
        (("task.target=no_task.None",), "task.target=no_task.None: cannot be imported"),
        (("trainer.max_steps=null",), "trainer.epochs=null: needs trainer.max_steps="),
        (("norm.head=gn",), "norm.head=gn: task=regression has no heads"),
        (("norm.head=mine",), "norm.head=mine: task=regression has no heads"),
        (("norm.head=gm",), "norm.head=gm: unknown choice; did you mean norm.head=gn?"),
    ],
)
def test_a_wrong_option_is_one_line(
    configs: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    words = ("train.py", *REGRESSION, "norm=bn", f"run_dir={tmp_path / 'run'}", *overrides)
    output = run(configs, *words, code=2)
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_task_can_fix_what_one_pass_holds(configs: Path, tmp_path: Path) -> None:
    command = ("train.py", *TWO_PHASE, f"run_dir={tmp_path / 'run'}")
    output = run(configs, *command, "norm=bn", "trainer.replicas_per_pass=2", code=2)
    assert "trainer.replicas_per_pass=2: task=two_phase runs one replica" in output
    output = run(configs, *command, "norm=sync_bn", code=2)
    advice = "this task needs 1 in each, so use 4 processes, one per replica"
    assert advice in output and "Traceback" not in output
    single = ("batch=2x8", "trainer.max_steps=1", "trainer.epochs=1", "evaluate=false")
    run(configs, *command, *single, "norm=sync_bn", processes=2)


def test_the_documented_task_is_the_tested_one() -> None:
    assert (
        f"```python\n{(HERE / 'regression_task.py').read_text()}```"
        in (ROOT / "docs" / "tasks.md").read_text()
    )
