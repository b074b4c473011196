"""``python evaluate.py run=...`` on trained runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import CELL, Done, evaluate, evaluate_forked, refused, result, succeeded
from conftest import SWEPT
from run_files import evaluated, version_1

from sn_imagenet.models import load
from sn_imagenet.norms import norm_layers
from sn_imagenet.runs import read_run

pytestmark = pytest.mark.slow  # a whole training first

COUNTS = ("top1_correct", "top5_correct", "seen")


def _counts(found: dict) -> dict[str, list[int]]:
    return {name: [e[key] for key in COUNTS] for name, e in evaluated(found).items()}


def _added(found: dict, count: int = 2) -> dict:
    """A result with its last evaluations alone."""
    return {**found, "evaluations": found["evaluations"][-count:]}


@pytest.fixture
def trained(cell: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the cell's run directory."""
    return shutil.copytree(cell[0], tmp_path / "run")


def test_a_run_is_evaluated_as_its_training_did(trained: Path, tmp_path: Path) -> None:
    before = result(trained)
    for name in ("result.json", "top1.md", "fig3.png"):
        (trained / name).unlink()
    done = succeeded(evaluate_forked(f"run={trained}", folder=tmp_path / "said"))
    after = result(trained)
    assert evaluated(after) == evaluated(before)
    assert after["importance_weights"] == before["importance_weights"]
    assert after["config"] == before["config"]
    assert after["training"] == before["training"]
    assert after["departures"] == before["departures"]
    # Who trained it and who evaluated it are both told.
    assert after["provenance"]["git_revision"] == before["provenance"]["git_revision"]
    assert {e["by"] for e in before["evaluations"]} == {"training"}
    for made in after["evaluations"]:
        assert made["by"] == "evaluate.py"
        assert made["provenance"]["versions"] == before["provenance"]["versions"]
        assert made["checkpoint"] == {"file": "final.pt", "epoch": 4, "step": 172}
    # What the batch average was made of needs no data any more.
    kept = torch.load(trained / "batch_average.pt")
    (average,) = (e for e in before["evaluations"] if e["statistics"] == "batch_average")
    assert kept["evaluation"] == average
    network = load(trained)
    for name, layer in norm_layers(network).items():
        assert layer.running_var.equal(kept["statistics"][name]["var"].float())
    assert (trained / "top1.md").read_text() in done.out
    assert (trained / "fig3.png").exists()
    assert done.err == ""


def test_two_processes_count_alike(trained: Path) -> None:
    before = result(trained)
    done = succeeded(evaluate(f"run={trained}", "trainer.eval_batch_size=33", processes=2))
    after = result(trained)
    assert after["evaluations"][:2] == before["evaluations"]
    after = _added(after)
    assert _counts(after)["moving_average"] == _counts(before)["moving_average"]
    # The sum over ranks is of another order: its rounding may tip an image or two.
    ours, theirs = (_counts(found)["batch_average"] for found in (after, before))
    assert ours[-1] == theirs[-1] == 400
    assert ours == pytest.approx(theirs, abs=2)
    calibration = evaluated(after)["batch_average"]["calibration"]
    assert calibration == evaluated(before)["batch_average"]["calibration"]
    assert "| batch average " in done.out


def test_another_calibration_is_added_and_does_not_count(trained: Path, tmp_path: Path) -> None:
    before = result(trained)
    (trained / "result.json").write_text(json.dumps(version_1(before)))  # an old run's
    chosen = ("calibration.samples=all", "calibration.estimator=population", "calibration.seed=3")
    done = succeeded(evaluate_forked(f"run={trained}", *chosen, folder=tmp_path / "said"))
    after = result(trained)
    unchanged = before.keys() - {"evaluations"}
    assert {key: after[key] for key in unchanged} == {key: before[key] for key in unchanged}
    assert evaluated(after) == evaluated(before)
    assert len(after["evaluations"]) == 4
    run = read_run(trained)
    assert run.top1() == evaluated(before)["batch_average"]["top1"]
    assert "| batch average, all samples, population, seed 3 |" in done.out
    after = _added(after)
    assert evaluated(after)["batch_average"]["calibration"] == {
        "estimator": "population",
        "samples_requested": "all",
        "samples_used": 1396,
        "samples_per_replica": 4,
        "seed": 3,
    }
    assert evaluated(after)["moving_average"] == evaluated(before)["moving_average"]


def test_a_glob_goes_into_one_table_past_an_unfinished_run(
    sweep_of_one: tuple[Path, Done], tmp_path: Path
) -> None:
    runs = shutil.copytree(sweep_of_one[0], tmp_path / "runs")
    unfinished = runs / CELL / "bn/8x2/seed0"
    for name in ("result.json", "final.pt"):
        (unfinished / name).unlink()
    done = evaluate(
        f"run={runs / '*/*/*/*/seed*'}", "calibration.samples=40", f"table={tmp_path / 'all.md'}"
    )
    refused(done, str(unfinished), "not trained to its end")
    table = (tmp_path / "all.md").read_text()
    assert table in done.out
    assert table.count("| batch average, 40 samples ") == len(SWEPT) - 1
    for cell in SWEPT:
        run_dir = runs / CELL / cell / "seed0"
        if run_dir == unfinished:
            continue
        calibration = evaluated(_added(result(run_dir)))["batch_average"]["calibration"]
        assert (calibration["samples_requested"], calibration["samples_used"]) == (40, 40)
    assert not (unfinished / "result.json").exists()


def test_what_is_no_run_is_refused(trained: Path, tmp_path: Path) -> None:
    done = evaluate_forked(f"run={tmp_path / 'nothing*'}", folder=tmp_path / "nothing said")
    refused(done, "no run directory there")
    final = trained / "final.pt"
    final.write_bytes(final.read_bytes()[:1000])
    done = evaluate_forked(f"run={trained}", folder=tmp_path / "said")
    refused(done, str(final), "not a readable checkpoint")
    assert (trained / "final.pt").stat().st_size == 1000
