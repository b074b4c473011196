"""Damaged and foreign files of a run: what is said about them is done here, and mends the run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from run_files import first_evaluations, result_of

from sn_imagenet.errors import UserError
from sn_imagenet.evaluation import EvaluationRequest, evaluate_run
from sn_imagenet.models import read_weights
from sn_imagenet.reporting.curves import read_epochs
from sn_imagenet.runs import RunDirectory, RunError, read_run
from sn_imagenet.runs.checkpoint import load_batch_average
from sn_imagenet.training import train

SMALL = ("data=digits", "model=resnet14_mini", "batch=8x8", "norm=bn", "trainer.max_steps=3")
SHORT = ("trainer.log_every=1", "calibration.samples=64", "tracker=none")
DAMAGE = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3]),
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"\0{garbage\n" * 9),
    "missing": lambda file: file.unlink(),
}
FILES = ("config.yaml", "metrics.jsonl", "final.pt", "batch_average.pt", "result.json")


@pytest.fixture
def config_of(composed, tmp_path):
    return lambda name, *more: composed(*SMALL, *SHORT, f"run_dir={tmp_path / name}", *more)


def state_of(run: Path) -> tuple[dict, bytes, dict]:
    weights = torch.load(run / "final.pt")["model"]
    rows = (run / "metrics.jsonl").read_bytes()
    return weights, rows, first_evaluations(result_of(read_run(run)))


def try_all(path: Path, config) -> list[str]:
    """Give the training command, evaluate, and load the weights; return the errors."""
    errors = []
    for use in (
        lambda: train(config),
        lambda: evaluate_run(path, EvaluationRequest({})),
        lambda: read_weights(path),
        lambda: load_batch_average(RunDirectory(path)),
    ):
        try:
            use()
        except RunError as error:
            errors.append(str(error))
    return errors


def follow(advice: str, run: Path) -> None:
    """Do what an error says: remove the file that it names first, if it says so."""
    if "remove it" in advice or "remove this file alone" in advice:
        next(run / name for name in FILES if f"/{name} " in advice).unlink()


def test_what_is_said_of_a_damaged_file_mends_a_finished_run(config_of, tmp_path, capsys):
    train(config_of("whole"))
    weights, rows, evaluations = state_of(tmp_path / "whole")
    for name in FILES:
        for kind, damage in DAMAGE.items():
            run = shutil.copytree(tmp_path / "whole", tmp_path / f"{name} {kind}")
            config = config_of(run.name)
            damage(run / name)
            for _ in range(3):
                errors = try_all(run, config)
                if not errors:
                    break
                assert all("Traceback" not in error for error in errors)
                follow(errors[0], run)
            assert not errors, (name, kind, errors)
            now_weights, now_rows, now_evaluations = state_of(run)
            assert all(torch.equal(now_weights[key], weights[key]) for key in weights), run
            assert now_rows == rows, run
            assert now_evaluations == evaluations, run
    output = capsys.readouterr().out
    for name in ("config.yaml missing/config.yaml was missing", "final.pt is not a readable"):
        assert name in output


def test_a_damaged_config_is_removed_alone_and_the_run_resumes(config_of, tmp_path):
    """Also before the run has a result."""
    train(config_of("run"))
    for kind in ("cut", "empty", "garbage"):
        run = shutil.copytree(tmp_path / "run", tmp_path / kind)
        (run / "result.json").unlink()
        DAMAGE[kind](run / "config.yaml")
        with pytest.raises(RunError, match=r"config\.yaml .*remove this file alone"):
            train(config_of(kind))
        with pytest.raises(RunError, match=r"config\.yaml .*remove this file alone"):
            evaluate_run(run, EvaluationRequest({}))
        (run / "config.yaml").unlink()
        assert result_of(train(config_of(kind)))["training"]["steps"] == 3


def test_files_of_another_run_are_not_believed(config_of, tmp_path):
    for name, seed in (("own", 0), ("other", 1)):
        train(config_of(name, f"seed={seed}"))
    weights, rows, evaluations = state_of(tmp_path / "own")
    for name in FILES:
        run = shutil.copytree(tmp_path / "own", tmp_path / f"foreign {name}")
        shutil.copy(tmp_path / "other" / name, run / name)
        config = config_of(run.name)
        for _ in range(3):
            errors = try_all(run, config)
            if not errors:
                break
            assert re.search(
                r"is of another run(, or cut off)? \(seed: 1 \(there\) -> 0", errors[0]
            )
            assert f"{run / name} is of another run" in errors[0]
            follow(errors[0], run)
        assert not errors, (name, errors)
        now_weights, now_rows, now_evaluations = state_of(run)
        assert all(torch.equal(now_weights[key], weights[key]) for key in weights), run
        assert (now_rows, now_evaluations) == (rows, evaluations), run


def test_files_of_another_training_of_the_same_experiment_are_not_believed(config_of, tmp_path):
    for name in ("own", "other"):
        train(config_of(name))
    weights, _, _ = state_of(tmp_path / "own")
    for name in ("final.pt", "batch_average.pt"):
        run = shutil.copytree(tmp_path / "own", tmp_path / f"foreign {name}")
        state = torch.load(tmp_path / "other" / name)
        if name == "batch_average.pt":  # of other weights
            state["evaluation"]["loss"] += 0.1
        torch.save(state, run / name)
        if name == "final.pt":
            with pytest.raises(RunError, match=r"final\.pt is of another training than"):
                evaluate_run(run, EvaluationRequest({}))
        config = config_of(run.name)
        for _ in range(3):
            errors = try_all(run, config)
            if not errors:
                break
            assert f"{run / name} is of another training than" in errors[0]
            follow(errors[0], run)
        assert not errors, (name, errors)
        assert all(torch.equal(state_of(run)[0][key], weights[key]) for key in weights), run
        assert torch.load(run / "final.pt")["training"] == result_of(read_run(run))["training"]


def test_metrics_that_cannot_be_rebuilt_are_told(config_of, tmp_path, capsys):
    for name, seed in (("own", 0), ("other", 1)):
        train(config_of(name, f"seed={seed}"))
    run = tmp_path / "own"
    shutil.copy(tmp_path / "other/metrics.jsonl", run)
    with pytest.raises(UserError, match=r"metrics\.jsonl is of another run \(seed: 1"):
        read_epochs(read_run(run))
    for name in ("last.pt", "previous.pt"):
        (run / name).unlink(missing_ok=True)
    for damage in (lambda file: None, DAMAGE["garbage"]):
        damage(run / "metrics.jsonl")
        capsys.readouterr()
        train(config_of("own"))
        assert re.search(
            r"own/metrics\.jsonl(: malformed row| is of another run).* no checkpoint is left",
            capsys.readouterr().out,
        )


def test_a_config_that_is_cut_to_a_valid_one_is_told(config_of, tmp_path):
    train(config_of("start"))
    train(config_of("run", f"init={tmp_path / 'start'}"))
    (tmp_path / "run/result.json").rename(tmp_path / "result.json")
    config_file = tmp_path / "run/config.yaml"
    text = config_file.read_text()
    config_file.write_text(text[: text.index("init:")])
    for use in (
        lambda: train(config_of("run", f"init={tmp_path / 'start'}")),
        lambda: evaluate_run(tmp_path / "run", EvaluationRequest({})),
    ):
        with pytest.raises(RunError, match=r"config\.yaml is of another run, or cut off \(init"):
            use()
    config_file.unlink()
    train(config_of("run", f"init={tmp_path / 'start'}"))
    assert config_file.read_text() == text


def test_a_finished_run_without_checkpoints_tells_of_damaged_weights(config_of, tmp_path):
    train(config_of("run"))
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    train(config_of("run"))
    DAMAGE["cut"](tmp_path / "run" / "final.pt")
    with pytest.raises(RunError, match=r"is finished, but .*final\.pt is not a readable"):
        train(config_of("run"))
