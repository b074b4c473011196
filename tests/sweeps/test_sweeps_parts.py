"""The parts of a sweep: its runs, slots and table, and the progress read from files."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from run_files import config, result, write_run

from hydra_plugins.sn_launchers._compose import compose_runs
from hydra_plugins.sn_launchers.local_launcher import LocalLauncher
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.runs import FAILED, Progress, RunInUseError
from sn_imagenet.runs.scores import Score
from sn_imagenet.sweeps.board import Board, RunStatus, duration, table
from sn_imagenet.sweeps.plan import TrainingSpeed, measured_speeds, plan, process_hours
from sn_imagenet.sweeps.planned import (
    PlannedRun,
    SweepSettings,
    is_run_override,
    plan_runs,
    sweep_settings,
)
from sn_imagenet.sweeps.pool import Pool
from sn_imagenet.sweeps.slots import Slot, machine_slots
from sn_imagenet.sweeps.starters import Starter, torchrun

CONFIGS = Path(__file__).parents[2] / "configs"
SWEEPS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))
# As the documentation says.
RUN_COUNTS = {"table2": 27, "demo": 27, "digits": 270, "imagenette": 36, "imagenette_resnet50": 72}
RUN_COUNTS |= {"small_batch": 96, "large_batch": 6, "nuclei": 9, "nuclei_classifiers": 9}


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("name", SWEEPS)
def test_the_sweeps_of_the_repository_use_known_choices_only(name):
    config = composed(f"sweep={name}")
    assert config.hydra.runtime.choices["hydra/launcher"] == "local"
    count = 1
    for group, choices in config.hydra.sweeper.params.items():
        known = {path.stem for path in (CONFIGS / group).glob("*.yaml")}
        chosen = known if choices == "glob(*)" else set(choices.split(","))
        assert chosen <= known or group in ("seed", "task.row")
        count *= len(chosen)
    assert count == RUN_COUNTS.get(name, count)


def test_studies_that_share_runs_have_one_protocol(composed):
    for pair in (("imagenette", "small_batch"), ("large_batch", "cifar10_small")):
        first, second = (composed(f"sweep={name}", "norm=sn", "batch=8x32") for name in pair)
        assert first.to_dict() == second.to_dict()


def test_runs_keep_their_overrides_without_those_of_the_sweep():
    overrides = ["norm=bn", "sweep.retries=3", "hydra/launcher=local", "data=digits", "seed=2"]
    (run,) = plan_runs([(overrides, composed("norm=bn", "data=digits", "seed=2"))])
    assert run.overrides == ("norm=bn", "data=digits", "seed=2")
    assert run.name == "digits/resnet50/bn/8x32/seed2"
    assert is_run_override("sweep=table2"), "its base config belongs to each run"
    assert not is_run_override("++hydra.sweep.dir=x")


def test_two_runs_in_one_directory_are_refused():
    both = [([f"protocol.base_lr={lr}"], composed(f"protocol.base_lr={lr}")) for lr in (0.1, 0.2)]
    with pytest.raises(ConfigError, match=r"share the run directory(.|\n)*base_lr=0.2(.|\n)*lr\$"):
        plan_runs(both)


def test_a_run_with_an_invalid_value_is_named():
    with pytest.raises(ConfigError, match=r"run batch.gpus=0: batch.gpus=0"):
        plan_runs([(["batch.gpus=0"], composed("batch.gpus=0"))])


@pytest.mark.parametrize("override", ["gpus_per_run=0", "slots=0", "retries=-1", "retries=many"])
def test_an_invalid_sweep_option_is_one_clear_error(override):
    with pytest.raises(ConfigError, match=r"sweep\." + override.split("=")[0]):
        sweep_settings(composed(f"sweep.{override}"))


def test_a_dry_run_without_the_local_launcher_trains_nothing(composed):
    with pytest.raises(ConfigError, match="hydra/launcher=local"):
        composed("sweep.dry_run=true")


def test_slots_divide_gpus_and_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one = machine_slots(SweepSettings(), "auto")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in one] == ["4", "5", "6", "7"]
    two = machine_slots(SweepSettings(gpus_per_run=2), "cuda")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in two] == ["4,5", "6,7"]
    with pytest.raises(UserError, match="4 GPUs"):
        machine_slots(SweepSettings(gpus_per_run=8), "auto")
    with pytest.raises(UserError, match="4 GPUs"):
        machine_slots(SweepSettings(gpus_per_run=2, slots=3), "auto")

    cores = len(os.sched_getaffinity(0))
    cpu = machine_slots(SweepSettings(), "cpu")
    assert len(cpu) == cores and cpu[0].environment == {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "SN_IMAGENET_CORES": "1",
    }
    (whole,) = machine_slots(SweepSettings(slots=1), "cpu")
    assert whole.environment["OMP_NUM_THREADS"] == str(cores)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="no GPU"):
        machine_slots(SweepSettings(), "cuda")


def test_a_terminal_redraws_the_table_in_place():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    board = Board(screen)
    rows = [RunStatus("a", "running", Progress("running", 1, 8, 50.0, 321.4, 3700), "GPU 0")]
    board.show(rows)
    board.show(rows)
    lines = len(table(rows))
    assert f"\x1b[{lines}A" in screen.getvalue()
    assert "1/8  top-1 50.00  321 images/s  1:01:40  GPU 0" in screen.getvalue()


def test_without_a_terminal_each_change_is_printed_as_a_line():
    out = io.StringIO()
    board = Board(out)
    for epoch in (1, 1, 1, 2):
        board.show(
            [RunStatus("a", "running", Progress("running", epoch, 8, 50.0, 321.4, 60), "GPU 0")]
        )
    assert out.getvalue().splitlines() == [
        "a: running  GPU 0  epoch 1/8  top-1 50.00  321 images/s  ETA 1:00",
        "a: running  GPU 0  epoch 2/8  top-1 50.00  321 images/s  ETA 1:00",
    ]


def test_a_score_has_its_label_and_a_speed_its_unit():
    error = Score("error", "median error", higher_is_better=False)
    waiting = RunStatus("b", "waiting")
    rows = [
        RunStatus(name, "running", Progress("running", value=0.031234567, score=error, **length))
        for name, length in (
            ("c", {"epoch": 1, "epochs": 8, "images_per_s": 12.3}),
            ("d", {"step": 200, "steps": 4000}),
        )
    ]
    head, b, c, d, _ = table([waiting, *rows])
    assert head.split() == ["run", "state", "epoch", "score", "speed", "ETA"]
    assert b.split() == ["b", "waiting", "-", "-", "-", "-"]
    assert "median error 0.031235  12 samples/s" in c and "200/4000 steps" in d
    out = io.StringIO()
    Board(out).show(rows)
    assert out.getvalue().splitlines() == [
        "c: running  epoch 1/8  median error 0.031235  12 samples/s",
        "d: running  200/4000 steps  median error 0.031235",
    ]


def test_durations():
    assert [duration(s) for s in (5, 3723, 200_000)] == ["0:05", "1:02:03", "2d 7h"]


def planned(folder, name):
    (run,) = plan_runs([((), composed(f"runs_dir={folder}", f"run_dir={folder / name}"))])
    return PlannedRun(run.config, (name,))


def run_pool(runs, command, retries):
    """Run a pool with one slot, to its exit code of 1; returns its output."""
    out = io.StringIO()
    assert Pool(runs, [Slot("slot", {})], Starter(command), retries, Board(out)).run() == 1
    return out.getvalue()


def test_a_failing_run_is_retried_after_the_others_and_then_reported(tmp_path):
    program = "import sys, pathlib; print('error: no such thing', sys.argv[1]); sys.exit(3)"
    runs = [planned(tmp_path, name) for name in ("a", "b")]
    output = run_pool(runs, [sys.executable, "-c", program], 1)
    starts = [line for line in output.splitlines() if "running" in line]
    assert [line[0] for line in starts] == ["a", "b", "a", "b"]
    for name in ("a", "b"):
        assert (tmp_path / name / "log.txt").read_text().count("# attempt") == 2
        assert f"no such thing {name} (see {tmp_path / name / 'log.txt'})" in output
    assert f"2 runs: 2 {FAILED}" in output


@pytest.mark.parametrize("where", ["python", "torchrun"])
def test_a_run_that_only_the_user_can_mend_is_not_tried_again(tmp_path, where):
    """torchrun exits with 1, whatever exit code its rank has."""
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.exit(2)")
    command = [sys.executable, script] if where == "python" else torchrun(1, [script])
    run_pool([planned(tmp_path, "a")], list(map(str, command)), 5)
    assert (tmp_path / "a" / "log.txt").read_text().count("# attempt") == 1


def test_a_run_refused_by_a_lock_is_running_elsewhere_and_not_failed(tmp_path):
    started, script = tmp_path / "started", tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        f"started = pathlib.Path({str(started)!r})\n"
        f"code = 2 if started.exists() else {RunInUseError.exit_code}\n"
        "started.touch()\n"
        "sys.exit(code)"
    )
    output = run_pool([planned(tmp_path, "a")], torchrun(1, [str(script)]), 0)
    states = [line.split("  ")[0] for line in output.splitlines() if line.startswith("a:")]
    assert states == ["a: running", "a: running elsewhere", "a: running", "a: failed"]


def test_hours_are_estimated_from_measurements_only(composed, tmp_path):
    config = composed("data=digits", "norm=bn", "batch=8x8", "trainer.epochs=10")
    assert process_hours(config, [], 0) is None
    model = str(config.to_dict()["model"])
    same = ("classification", "None", "digits", model, "16", "fp32")
    exact = TrainingSpeed((*same, "bn", "8x8"), 100.0, 1344)
    other = TrainingSpeed((*same, "gn", "8x8"), 50.0, 1344)
    steps = 1397 // 64
    assert process_hours(config, [exact, other], 0) == pytest.approx(steps * 10 * 64 / 100 / 3600)
    assert process_hours(config, [other], 5) == pytest.approx(steps * 5 * 64 / 50 / 3600)
    elsewhere = TrainingSpeed((*same[:2], "cifar10", *same[3:], "bn", "8x8"), 100.0, 50_000)
    assert process_hours(config, [elsewhere], 0) is None
    config.task = {"name": "mine", "target": "mine.Task"}  # an epoch of two phases
    two = [TrainingSpeed(("mine", *same[1:], "bn", "8x8"), 100.0, 2 * 1344)]
    assert process_hours(config, two, 0) == pytest.approx(2 * 1344 * 10 / 100 / 3600)
    (tmp_path / "result.json").write_text("{")
    assert measured_speeds([tmp_path], "cpu") == []


def test_a_dry_run_uses_the_given_benchmark(tmp_path):
    overrides = ("data=digits", "norm=bn", f"runs_dir={tmp_path}", "trainer.epochs=10")
    variants = ("batch=8x8", "batch=8x2", "model=resnet14_mini")
    runs = plan_runs([((), composed(*overrides, variant)) for variant in variants])
    report = tmp_path / "train.json"
    text = {
        "config": runs[0].config.to_dict(),
        "batch": 64,
        "steps_per_epoch": 21,
        "training": 1000.0,
    }
    report.write_text(json.dumps(text))
    lines = plan(runs, 2, [str(report)])
    # Two runs have the same model and whole batches; the third has another model.
    hours = 10 * (21 * 64 + 87 * 16) / 1000 / 3600
    assert lines[-2].startswith("GPU-hours of 1 run: not measured")
    assert (
        f"GPU-hours of 2 runs: {hours:.3g}, training only, at the speed of {report}" in (lines[-1])
    )
    report.write_text("{}")
    with pytest.raises(UserError, match=r"train\.json is not a report .*\(no entry 'batch'\)"):
        plan(runs, 2, [str(report)])
    with pytest.raises(UserError, match=r"absent\.json is not a report"):
        plan(runs, 2, [str(tmp_path / "absent.json")])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("sweep=depth", "model=resnet14_mini"), r"of 1 run: 0\.0\d+, .* of the committed studies"),
        (("data.root=data", "norm=bn"), r"of 1 run: 30 on V100, 14\.4 on A100, 4\.44 on H200, by"),
    ],
)
def test_a_dry_run_tells_hours_of_committed_runs_or_published_logs(tmp_path, options, expected):
    runs = plan_runs([((), composed(*options, f"runs_dir={tmp_path}", "trainer.device=cpu"))])
    assert re.search(expected, plan(runs, 2)[-1]), plan(runs, 2)[-1]


def test_missing_data_are_told_before_the_other_runs_are_composed(tmp_path, monkeypatch):
    config = composed("sweep=demo")
    module = sys.modules["hydra._internal.core_plugins.basic_sweeper"]
    monkeypatch.setattr(module.BasicSweeper, "validate_batch_is_legal", None)
    LocalLauncher().setup(hydra_context=None, task_function=None, config=config)
    module.BasicSweeper.validate_batch_is_legal(None, None)
    loaded = []

    def load(config, overrides):
        loaded.append(overrides)
        return composed(*overrides, f"runs_dir={tmp_path}")

    context = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=load))
    style = ("task=stylization", "task.style=/absent.png", "task.features=f", "data.train=/")
    for options, message in (
        (("data.root=/absent",), "ImageNet is required, but /absent"),
        (style, r"task\.style=/absent\.png: no such file"),
        (("task=detection", "data.root=null", "protocol=setting2"), r"data\.root=DIR .*missing"),
        (("task=detection", "data.root=/absent", "protocol=setting2"), r"data\.root=/absent: no"),
    ):
        loaded.clear()
        with pytest.raises(UserError, match=message):
            compose_runs(context, None, [(*options, f"seed={seed}") for seed in range(9)], 1)
        assert len(loaded) == 1


def test_a_dry_run_of_a_complete_sweep_has_nothing_to_do(tmp_path):
    values = config("sn", "8x32")
    write_run(tmp_path, values, result(values, status="diverged"))
    overrides = (f"runs_dir={tmp_path}", "data=digits", "model=resnet50_mini")
    lines = plan(plan_runs([((), composed(*overrides))]), slots=1)
    assert "already diverged" in lines[1] and lines[-1].startswith("nothing to do")
