"""``python evaluate.py run=...`` on trained runs."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import (
    MODEL_DIR,
    ROOT,
    Completed,
    check_error,
    check_ok,
    evaluate,
    evaluate_forked,
    read_result,
)
from conftest import SWEPT
from omegaconf import OmegaConf
from PIL import Image
from run_files import first_evaluations
from trained_runs import save_run

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation import EvaluationRequest
from sn_imagenet.models import load
from sn_imagenet.norms import norm_layers
from sn_imagenet.runs import read_run
from sn_imagenet.tasks import prepare

pytestmark = pytest.mark.slow  # needs a whole training run


def _added(result: dict, count: int = 2) -> dict:
    """A result with only its last ``count`` evaluations."""
    return {**result, "evaluations": result["evaluations"][-count:]}


@pytest.fixture
def trained(base_run: tuple[Path, Completed], tmp_path: Path) -> Path:
    """A copy of the run directory of ``base_run``."""
    return shutil.copytree(base_run[0], tmp_path / "run")


def test_evaluate_repeats_the_evaluation_of_training(trained: Path, tmp_path: Path) -> None:
    before = read_result(trained)
    for name in ("result.json", "top1.md", "fig3.png"):
        (trained / name).unlink()
    done = check_ok(evaluate_forked(f"run={trained}", folder=tmp_path / "logs"))
    after = read_result(trained)
    assert first_evaluations(after) == first_evaluations(before)
    assert after["importance_weights"] == before["importance_weights"]
    assert after["config"] == before["config"]
    assert after["training"] == before["training"]
    assert after["departures"] == before["departures"]
    # The provenance of both training and evaluation is recorded.
    assert after["provenance"]["git_revision"] == before["provenance"]["git_revision"]
    assert {e["by"] for e in before["evaluations"]} == {"training"}
    for evaluation in after["evaluations"]:
        assert evaluation["by"] == "evaluate.py"
        assert evaluation["provenance"]["versions"] == before["provenance"]["versions"]
        assert evaluation["checkpoint"] == {"file": "final.pt", "epoch": 4, "step": 172}
    # The statistics of the batch average are saved, so it needs no data any more.
    saved = torch.load(trained / "batch_average.pt")
    (average,) = (e for e in before["evaluations"] if e["statistics"] == "batch_average")
    assert saved["evaluation"] == average
    network = load(trained)
    for name, layer in norm_layers(network).items():
        assert layer.running_mean.equal(saved["statistics"][name]["mean"].float())
        assert layer.running_var.equal(saved["statistics"][name]["var"].float())
    assert (trained / "top1.md").read_text() in done.out
    assert (trained / "fig3.png").exists()
    assert done.err == ""


def test_another_calibration_is_added_but_not_reported(trained: Path, tmp_path: Path) -> None:
    before = read_result(trained)
    chosen = ("calibration.samples=all", "calibration.estimator=population", "calibration.seed=3")
    done = check_ok(evaluate_forked(f"run={trained}", *chosen, folder=tmp_path / "logs"))
    after = read_result(trained)
    unchanged = before.keys() - {"evaluations"}
    assert {key: after[key] for key in unchanged} == {key: before[key] for key in unchanged}
    assert first_evaluations(after) == first_evaluations(before)
    assert len(after["evaluations"]) == 4
    run = read_run(trained)
    assert run.score_value() == first_evaluations(before)["batch_average"]["top1"]
    assert "| batch average, all samples, population, seed 3 |" in done.out
    after = _added(after)
    assert first_evaluations(after)["batch_average"]["calibration"] == {
        "estimator": "population",
        "samples_requested": "all",
        "samples_used": 1396,
        "samples_per_replica": 4,
        "seed": 3,
    }
    assert first_evaluations(after)["moving_average"] == first_evaluations(before)["moving_average"]


def test_all_options_of_an_evaluation(trained: Path, tmp_path: Path) -> None:
    before = read_result(trained)
    chosen = ("calibration.samples=[256,64]", "calibration.draws=2", "checkpoint=previous.pt")
    files = ("per_class=classes.csv", "save_logits=logits.npz")
    done = check_ok(evaluate_forked(f"run={trained}", *chosen, *files, folder=tmp_path / "logs"))
    after = read_result(trained)
    assert after["evaluations"][:2] == before["evaluations"]
    added = after["evaluations"][2:]
    draws = [(e["calibration"]["samples_used"], e["calibration"]["seed"]) for e in added[1:]]
    assert draws == [(64, 0), (256, 0), (64, 1), (256, 1)]
    assert {e["checkpoint"]["file"] for e in added} == {"previous.pt"}
    assert added[0]["checkpoint"]["epoch"] == 3
    assert re.search(r"batch average of 256 samples, 2 draws: top-1 \d+\.\d\d \+- ", done.out)
    assert "| batch average, 256 samples, seed 1, previous.pt |" in done.out

    # The saved logits give the same numbers.
    saved = np.load(trained / "logits.npz")
    names = ["moving_average", *(f"batch_average_{n}_seed{seed}" for n, seed in draws)]
    assert list(saved) == ["labels", *names]
    labels = saved["labels"]
    with open(trained / "classes.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    assert [int(row["seen"]) for row in classes] == np.bincount(labels).tolist()
    for name, evaluation in zip(names, added, strict=True):
        logits = saved[name].astype(np.float64)
        correct = logits.argmax(1) == labels
        assert correct.sum() == evaluation["top1_correct"]
        loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(400), labels]
        assert evaluation["loss"] == pytest.approx(loss.mean(), rel=1e-6)
        by_class = [int(row[f"{name} correct"]) for row in classes]
        assert by_class == [int(correct[labels == k].sum()) for k in range(10)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("calibration.draws=0", "calibration.draws=0: expected"),
        ("calibration.samples=[64,none]", "calibration.samples=none: expected"),
        ("save_logits=../x.npz", "save_logits=../x.npz: expected a file name"),
        ("per_class=result.json", "per_class=result.json: expected a file name"),
        ("artifacts.boxes=result.json", "artifacts.boxes=result.json: expected a file name"),
        ("artifacts.boxes=a/b.json", "artifacts.boxes=a/b.json: expected a file name"),
        ("artifacts.boxes=7", "artifacts.boxes=7: expected a file name"),
    ],
)
def test_invalid_options_are_refused(override: str, message: str) -> None:
    key, _, value = override.partition("=")
    options = OmegaConf.load(ROOT / "configs/evaluation/evaluate.yaml")
    OmegaConf.update(options, key, yaml.safe_load(value), force_add=True)
    with pytest.raises(ConfigError, match=re.escape(message)):
        EvaluationRequest.from_config(dict(OmegaConf.to_container(options)))  # type: ignore[arg-type]


def test_other_images_of_the_same_classes(
    tmp_path: Path, composed: Callable[..., ExperimentConfig]
) -> None:
    for part in ("train", "val", "dark"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for image in range(8):
                shade = (60 * number + 10 * image) // (1 + (part == "dark"))
                Image.new("RGB", (32, 32), (shade, 90, 255 - shade)).save(folder / f"{image}.png")
    parts = (f"data.{part}={tmp_path / part}" for part in ("train", "val"))
    config = composed("data=imagefolder_small", "model=resnet14_mini", "norm=bn", "batch=1x8",
                      "data.workers=0", f"run_dir={tmp_path / 'run'}", *parts)  # fmt: skip
    prepared = prepare(config)
    run_dir = save_run(
        config,
        prepared.network,
        prepared.data.classes,
        training={"steps": 2, "steps_per_epoch": 2, "epochs": 1},
        provenance=prepared.provenance,
        data_fingerprint=prepared.data.fingerprint,
    )
    run, dark = f"run={run_dir}", f"data.val={tmp_path / 'dark'}"
    check_error(evaluate_forked(run, dark, folder=tmp_path / "a"), "data.name=", "the val images")
    check_ok(evaluate_forked(run, folder=tmp_path / "b"))
    done = check_ok(evaluate_forked(run, dark, "data.name=dark", folder=tmp_path / "c"))
    own, other = read_result(run_dir)["evaluations"][::2]
    assert other["data"]["name"] == "dark" and other["data"]["val"] != own["data"]["val"]
    assert read_run(run_dir).counted_evaluations["moving_average"] == own
    assert "| moving average, on dark, other images |" in done.out


def test_a_glob_gives_one_table_despite_an_unfinished_run(
    sweep_of_one: tuple[Path, Completed], tmp_path: Path
) -> None:
    runs = shutil.copytree(sweep_of_one[0], tmp_path / "runs")
    unfinished = runs / MODEL_DIR / "bn/8x2/seed0"
    for name in ("result.json", "final.pt"):
        (unfinished / name).unlink()
    done = evaluate(
        f"run={runs / '*/*/*/*/seed*'}", "calibration.samples=40", f"table={tmp_path / 'all.md'}"
    )
    check_error(done, str(unfinished), "training has not finished")
    table = (tmp_path / "all.md").read_text()
    assert table in done.out
    assert table.count("| batch average, 40 samples ") == len(SWEPT) - 1
    for name in SWEPT:
        run_dir = runs / MODEL_DIR / name / "seed0"
        if run_dir == unfinished:
            continue
        evaluations = first_evaluations(_added(read_result(run_dir)))
        calibration = evaluations["batch_average"]["calibration"]
        assert (calibration["samples_requested"], calibration["samples_used"]) == (40, 40)
    assert not (unfinished / "result.json").exists()


def test_evalnorm_is_one_more_evaluation_of_batch_norm(
    sweep_of_one: tuple[Path, Completed], tmp_path: Path
) -> None:
    """With 1/8 of each sample's own statistics; once, and never of other methods."""
    run, sn = (
        shutil.copytree(sweep_of_one[0] / MODEL_DIR / norm / "8x8/seed0", tmp_path / norm)
        for norm in ("bn", "sn")
    )
    before = read_result(run)
    check_ok(evaluate(f"run={run}", "statistics=evalnorm"))
    after = read_result(run)
    assert after["evaluations"][:-1] == before["evaluations"]
    added = after["evaluations"][-1]
    assert (added["statistics"], added["weight_of_sample"]) == ("evalnorm", 1 / 8)
    assert added["calibration"] is None and added["seen"] == before["evaluations"][0]["seen"]
    assert added["loss"] != before["evaluations"][0]["loss"]
    assert read_run(run).score_value("evalnorm") == added["top1"]
    for name in ("final.pt", "config.yaml"):
        (run / name).unlink()  # not needed for what is there, and not committed in a study
    again = check_ok(evaluate(f"run={run}", "statistics=evalnorm"))
    assert "already evaluated with evalnorm, nothing to do" in again.output
    assert read_result(run) == after
    check_error(evaluate(f"run={sn}", "statistics=evalnorm"), "EvalNorm evaluates batch norm")
    check_error(evaluate(f"run={sn}", "statistics=sample"), "expected null or evalnorm")
