"""Damaged checkpoints, full disks and signals, on real files."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_files import result_of
from run_processes import steps

from sn_imagenet.errors import UserError
from sn_imagenet.evaluation import EvaluationRequest, evaluate_run
from sn_imagenet.runs import RunDirectory, RunError, checkpoint
from sn_imagenet.runs.checkpoint import CheckpointSaver
from sn_imagenet.training import train
from sn_imagenet.training.stop import Interrupted, SignalHandler

TINY = ("data=digits", "model=resnet14_mini", "batch=8x8", "norm=sn", "evaluate=false")


@pytest.fixture
def run_of(composed, tmp_path):
    """``run_of("name", ...)``: the config of a tiny run in its directory."""

    def make(name, *overrides):
        return composed(*TINY, f"run_dir={tmp_path / name}", "trainer.max_steps=6", *overrides)

    return make


def edit_checkpoint(path: Path, change) -> None:
    state = torch.load(path)
    changed = change(state)
    torch.save(changed if isinstance(changed, dict) and "version" in changed else state, path)


UNUSABLE = {
    "nothing": lambda state: {"version": 1},
    "no model": lambda state: state.pop("model"),
    "half an optimizer": lambda state: state["optimizers"].clear(),
    "no meter": lambda state: state["meters"].pop("seconds"),
    "other metrics": lambda state: state["metrics"].fill_(0),
    "NaN": lambda state: state["model"]["fc.weight"].fill_(torch.nan),
    "a version of many": lambda state: {"version": torch.ones(3)},
}


def test_a_run_resumes_from_the_checkpoint_before_an_unusable_one(run_of, tmp_path, capsys):
    with pytest.raises(Interrupted), StopAfter(4):
        train(run_of("stopped", "checkpoint.minutes=0"))
    train(run_of("uninterrupted"))
    for number, change in enumerate(UNUSABLE.values()):
        run = shutil.copytree(tmp_path / "stopped", tmp_path / f"run{number}")
        edit_checkpoint(run / "last.pt", change)
        train(run_of(run.name, "checkpoint.minutes=0"))
        output = capsys.readouterr().out
        assert f"warning: {run / 'last.pt'} " in output, output
        assert "Resuming from epoch 0, step 4" in output
        assert_same_weights(run, tmp_path / "uninterrupted")
        (warning,) = RunDirectory(run).read_result()["training"]["warnings"]
        assert f"warning: {warning}\n" in output
    run = shutil.copytree(tmp_path / "stopped", tmp_path / "none")
    for name in ("last.pt", "previous.pt"):
        edit_checkpoint(run / name, UNUSABLE["nothing"])
    with pytest.raises(RunError, match="no checkpoint of this run is readable"):
        train(run_of("none"))


METRICS_DAMAGE = {
    "removed": lambda file: file.unlink(),
    "garbage first": lambda file: file.write_bytes(b"\0garbage\n" + file.read_bytes()),
}


def test_damaged_metrics_are_rebuilt_with_a_warning_in_the_result(run_of, tmp_path, capsys):
    """The warning is also kept over a later start, which finds no damage."""
    with pytest.raises(Interrupted), StopAfter(4):
        train(run_of("stopped", "trainer.log_every=1"))
    whole = (tmp_path / "stopped" / "metrics.jsonl").read_bytes()
    for number, damage in enumerate(METRICS_DAMAGE.values()):
        run = shutil.copytree(tmp_path / "stopped", tmp_path / f"run{number}")
        damage(run / "metrics.jsonl")
        with pytest.raises(Interrupted), StopAfter(1):
            train(run_of(run.name, "trainer.log_every=1"))
        warnings = [line for line in capsys.readouterr().out.splitlines() if "warning:" in line]
        assert len(warnings) == 1 and f"warning: {run / 'metrics.jsonl'} " in warnings[0]
        assert (run / "metrics.jsonl").read_bytes().startswith(whole)
        training = result_of(train(run_of(run.name, "trainer.log_every=1")))["training"]
        assert [f"warning: {line}" for line in training["warnings"]] == warnings
        assert "warning:" not in capsys.readouterr().out
        assert steps(run) == [1, 2, 3, 4, 5, 6]


def test_another_experiment_is_refused_even_without_config_yaml(run_of, tmp_path):
    """Nothing is written before the error, so the original run can still resume."""
    with pytest.raises(Interrupted), StopAfter(2):
        train(run_of("run"))
    (tmp_path / "run" / "config.yaml").unlink()
    for _ in ("interrupted", "finished"):
        with pytest.raises(RunError, match=r"(?s)another config.*lr: 0.1 .*seed: 0 .there. -> 3"):
            train(run_of("run", "seed=3", "protocol.base_lr=0.2"))
        assert not (tmp_path / "run" / "config.yaml").exists()
        assert result_of(train(run_of("run")))["training"]["steps"] == 6
        (tmp_path / "run" / "config.yaml").unlink(missing_ok=True)


def test_other_data_is_refused(composed, tmp_path):
    for part, count in (("train", 24), ("val", 4), ("other", 30)):
        for i in range(count):
            file = tmp_path / part / f"class{i % 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (8 * i, 0, 0)).save(file)
    photographs = ("data=imagefolder", f"data.val={tmp_path / 'val'}", "data.workers=0")
    small = ("data.image_size=16", "data.resize_size=16", "model=resnet14_mini", "batch=1x8")
    run = (*photographs, *small, f"run_dir={tmp_path / 'run'}", "trainer.epochs=2")
    with pytest.raises(Interrupted), StopAfter(4):
        train(composed(*run, f"data.train={tmp_path / 'train'}", "evaluate=false"))
    with pytest.raises(UserError, match=r"the train images .*train: 24 samples then, 30 now"):
        train(composed(*run, f"data.train={tmp_path / 'other'}", "evaluate=false"))
    (tmp_path / "train").rename(tmp_path / "moved")
    moved = train(composed(*run, f"data.train={tmp_path / 'moved'}", "evaluate=false"))
    assert result_of(moved)["training"]["steps"] == 6
    edit_checkpoint(tmp_path / "run" / "final.pt", UNUSABLE["nothing"])
    with pytest.raises(RunError, match=r"final\.pt is not .*: no entry 'model'"):
        evaluate_run(
            tmp_path / "run", EvaluationRequest({"data": {"train": str(tmp_path / "moved")}})
        )


class StopAfter:
    """Sends a real SIGUSR1 to this process during a given optimizer step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __enter__(self):
        self._step = torch.optim.SGD.step
        counted = iter(range(1, 1_000_000))
        step, wanted = self._step, self.steps

        def counting(optimizer, *args, **kwargs):
            if next(counted) == wanted:
                os.kill(os.getpid(), signal.SIGUSR1)
            return step(optimizer, *args, **kwargs)

        torch.optim.SGD.step = counting

    def __exit__(self, *error: object) -> None:
        torch.optim.SGD.step = self._step


def assert_same_weights(one: Path, other: Path) -> None:
    models = [torch.load(path / "final.pt", weights_only=True)["model"] for path in (one, other)]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name


def test_a_snapshot_is_the_state_at_the_time_of_saving(tmp_path):
    directory = RunDirectory(tmp_path)
    weights = torch.zeros(1_000_000)
    saver = CheckpointSaver(directory, lambda: time.sleep(0.2))
    saver.save({"w": weights, "nested": [{"w": weights}]})
    weights.fill_(1.0)
    saver.wait()
    loaded = checkpoint.load(directory.last)
    assert loaded["w"].sum() == 0 and loaded["nested"][0]["w"].sum() == 0


def test_an_endless_wait_is_interrupted_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGUSR1)

    def wait_forever() -> None:
        with SignalHandler():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(60)

    with pytest.raises(Interrupted) as interrupt:
        wait_forever()
    assert interrupt.value.code == os.EX_TEMPFAIL
    assert signal.getsignal(signal.SIGUSR1) is before
    with SignalHandler() as signals:
        assert interrupted_at_the_end_of(signals.deferred())
        os.kill(os.getpid(), signal.SIGTERM)  # a second signal during shutdown changes nothing


def test_a_signal_ignored_at_start_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalHandler() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.received
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def interrupted_at_the_end_of(deferred: AbstractContextManager[None]) -> bool:
    reached = False
    with suppress(Interrupted), deferred:
        os.kill(os.getpid(), signal.SIGTERM)
        reached = True
        time.sleep(0)
    return reached


def test_a_run_keeps_no_descriptors_open(run_of):
    """Within one program, as Hydra's basic launcher starts run after run."""
    train(run_of("first"))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for name in ("second", "third"):
        train(run_of(name))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
