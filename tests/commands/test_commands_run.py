"""``python train.py norm=sn batch=8x4 ...``: one run from its config to its result."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from command_line import ROOT, Completed, read_metrics, read_result
from run_files import first_evaluations
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow  # needs a whole training run

Run = tuple[Path, Completed]


def test_result_has_counts_and_top1(base_run: Run) -> None:
    result = read_result(base_run[0])
    assert result["version"] == 2
    assert result["status"] == "finished"
    assert result["error"] is None
    assert result["diverged"] is None
    assert set(first_evaluations(result)) == {"moving_average", "batch_average"}
    for evaluation in first_evaluations(result).values():
        assert evaluation["seen"] == 400
        assert evaluation["top1"] == 100 * evaluation["top1_correct"] / 400
        assert evaluation["top5"] == 100 * evaluation["top5_correct"] / 400
        assert evaluation["top1_correct"] <= evaluation["top5_correct"] <= 400
        assert evaluation["loss"] > 0
    # After four epochs it is far above chance, 10 %.
    assert first_evaluations(result)["batch_average"]["top1"] > 50
    assert first_evaluations(result)["moving_average"]["calibration"] is None
    assert first_evaluations(result)["batch_average"]["calibration"] == {
        "estimator": "mean_of_variances",
        "samples_requested": 50000,
        "samples_used": 1396,  # 349 minibatches of 4 of 1,397
        "samples_per_replica": 4,
        "seed": 0,
    }


def test_result_records_cell_and_config(base_run: Run) -> None:
    result = read_result(base_run[0])
    assert result["cell"] == {
        "data": "digits",
        "model": "resnet14_mini",
        "norm": "sn",
        "batch": "8x4",
        "gpus": 8,
        "samples_per_gpu": 4,
        "seed": 0,
        "norm_args": {"omega": ["in", "ln", "bn"]},
        "test_statistics": "batch_average",
    }
    assert result["config"] == yaml.safe_load((base_run[0] / "config.yaml").read_text())
    assert result["config"]["protocol"]["weight_decay"] == 1e-4


def test_result_records_its_provenance(base_run: Run) -> None:
    result = read_result(base_run[0])
    provenance = result["provenance"]
    head = ["git", "rev-parse", "HEAD"]
    git = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode == 0:
        assert re.fullmatch("[0-9a-f]{40}", provenance["git_revision"])
        assert provenance["git_dirty"] in (True, False)
    assert provenance["versions"]["torch"] == version("torch")
    assert provenance["hardware"]["cpu_threads"] == 1
    assert provenance["data_fingerprint"]["train"]["samples"] == 1397
    assert provenance["data_fingerprint"]["val"]["samples"] == 400
    training = result["training"]
    assert training["steps"] == 4 * 43
    assert training["samples"] == 4 * 43 * 32
    assert training["world_sizes"] == [1]
    assert training["wall_time_s"] > 0
    assert training["images_per_s"] == pytest.approx(
        training["samples"] / training["wall_time_s"], rel=0.01
    )


def test_top1_table_is_printed_and_written(base_run: Run) -> None:
    run_dir, done = base_run
    table = (run_dir / "top1.md").read_text()
    assert table in done.out
    best = first_evaluations(read_result(run_dir))["batch_average"]
    row = next(line for line in table.splitlines() if "batch average" in line)
    assert f"{best['top1']:.2f}" in row
    assert f"{best['top1_correct']}/400" in row
    assert str(run_dir / "top1.md") in done.out


def test_importance_weights_are_plotted_and_listed(base_run: Run) -> None:
    run_dir, _ = base_run
    for name in ("fig3", "fig4"):
        assert (run_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (run_dir / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    layers = read_result(run_dir)["importance_weights"]
    assert len(layers) == 17
    assert layers[0]["name"] == "bn1"
    for layer in layers:
        for table in (layer["mean"], layer["variance"]):
            assert list(table) == ["in", "ln", "bn"]
            assert sum(table.values()) == pytest.approx(1)


def test_metrics_hold_each_step_once_and_follow_the_schedule(base_run: Run) -> None:
    rows = read_metrics(base_run[0])
    training = [row for row in rows if row["kind"] == "train"]
    end = 0
    for row in training:
        assert row["step"] == end + row["steps"]
        end = row["step"]
        assert row["epoch"] == (row["step"] - 1) // 43 + 1
        assert row["loss"] > 0
        assert 0 <= row["top1"] <= 100
        assert row["images_per_s"] > 0
        assert 0 <= row["data_wait_pct"] <= 100
        # 0.1 * 32 / 256 at first, x0.1 after 0.3 and 0.6 of four epochs.
        assert row["lr"] == pytest.approx(0.0125 * {1: 1, 2: 0.1, 3: 0.01, 4: 0.01}[row["epoch"]])
    assert end == 4 * 43
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [(row["epoch"], row["epochs"], row["step"]) for row in epochs] == [
        (1, 4, 43),
        (2, 4, 86),
        (3, 4, 129),
        (4, 4, 172),
    ]
    last = first_evaluations(read_result(base_run[0]))["moving_average"]
    assert epochs[-1]["val"]["top1_correct"] == last["top1_correct"]
    assert all(len(row["importance_weights"]) == 17 for row in epochs)


def test_tensorboard_shows_the_run(base_run: Run) -> None:
    run_dir, _ = base_run
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    measured = {"train/loss", "train/top1", "opt/lr", "perf/images_per_s", "perf/data_wait_pct"}
    weights = {tag for tag in tags if tag.startswith("importance_")}
    assert tags - weights == measured | {"val/top1", "final/top1"}
    assert len(weights) == 5 * 2 * 3  # of each stage
    rows = read_metrics(run_dir)
    losses = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
    shown = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert shown == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in losses]
    stem = [event.value for event in board.Scalars("importance_mean/res1/bn")]
    assert stem[-1] == pytest.approx(rows[-1]["importance_weights"]["bn1"]["mean"]["bn"], rel=1e-6)
    assert [event.value for event in board.Scalars("final/top1")] == pytest.approx(
        [first_evaluations(read_result(run_dir))["batch_average"]["top1"]]
    )


def test_checkpoints_hold_plain_tensors(base_run: Run) -> None:
    run_dir, _ = base_run
    final = torch.load(run_dir / "final.pt", weights_only=True)
    last = torch.load(run_dir / "last.pt", weights_only=True)
    previous = torch.load(run_dir / "previous.pt", weights_only=True)
    assert (last["epoch"], previous["epoch"]) == (4, 3)
    assert final["model"].keys() == last["model"].keys()
    assert all(torch.equal(final["model"][key], last["model"][key]) for key in final["model"])
    assert "layer1.0.bn1.mean_weight" in final["model"]
    left = {path.name for path in run_dir.iterdir()}
    assert left == {
        *("config.yaml", "metrics.jsonl", "result.json", "top1.md", "tensorboard"),
        *("last.pt", "previous.pt", "final.pt", "batch_average.pt"),
        *("fig3.png", "fig3.pdf", "fig4.png", "fig4.pdf"),
    }


def test_progress_is_printed_as_plain_lines(base_run: Run) -> None:
    _, done = base_run
    assert done.err == ""
    assert "8 replicas of 4 samples on 1 process" in done.out
    line = (
        r"epoch 3/4  step 90/172  loss \d\.\d+  top-1 +\d+\.\d\d  lr 0\.000125  \d+ images/s  ETA"
    )
    assert re.search(line, done.out)
    assert len(re.findall(r"validation top-1", done.out)) == 4
