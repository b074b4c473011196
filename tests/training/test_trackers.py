"""Trackers: what they log, and that a resumed run stays one run."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sn_imagenet.config import NON_EXPERIMENT_KEYS
from sn_imagenet.errors import ConfigError
from sn_imagenet.runs import RunDirectory
from sn_imagenet.runs.scores import TOP1
from sn_imagenet.training.recorder import stage_mean_weights
from sn_imagenet.training.trackers import Tracker, make_tracker

DEPARTURE = {"item": "epochs", "paper": "100", "ours": "8"}


@pytest.fixture
def prepared_of(composed) -> Callable[[str], Any]:
    """``prepared_of(tracker)``: what a tracker needs of a :class:`Prepared`."""
    task = SimpleNamespace(score=TOP1, departures=lambda fingerprint: [DEPARTURE])
    return lambda tracker: SimpleNamespace(
        config=composed("data=digits", "batch=8x2", f"tracker={tracker}"),
        task=task,
        data=SimpleNamespace(fingerprint={}),
    )


def log_steps(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.scalars({"train/loss": 1 / step, "val/top1": 10.0 * step}, step)


def test_tensorboard_has_config_departures_metrics_and_final_top1(
    prepared_of: Callable[[str], Any], tmp_path: Path
) -> None:
    directory, prepared = RunDirectory(tmp_path), prepared_of("tensorboard")
    first = make_tracker(prepared, directory, 0)
    log_steps(first, range(1, 4))
    first.close()
    second = make_tracker(prepared, directory, 2)  # the third step is repeated
    log_steps(second, range(3, 5))
    second.finish(41.5)
    second.close()
    board = EventAccumulator(str(directory.tensorboard))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.value for event in board.Scalars("final/top1")] == [41.5]
    texts = {
        tag: board.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()
        for tag in ("config", "departures")
    }
    assert "    samples_per_gpu: 2\n" in texts["config"]
    assert "| epochs | 100 | 8 |" in texts["departures"]
    assert "custom_scalars__config__" in board.Tags()["tensors"]
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_a_resumed_run_stays_one_run(
    prepared_of: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    trackio = pytest.importorskip("trackio")
    directory, prepared = RunDirectory(tmp_path / "run"), prepared_of("trackio")
    for step, steps in ((0, range(1, 4)), (2, range(3, 5))):
        tracker = make_tracker(prepared, directory, step)
        log_steps(tracker, steps)
        if step:
            tracker.finish(41.5)
        tracker.close()
    (run,) = trackio.Api().runs("digits")
    assert run.name == directory.tracked_as.read_text().strip()
    assert run.name.startswith("resnet50/sn/8x2/seed0-") and run.config["seed"] == 0
    stored = sqlite3.connect(next((tmp_path / "store").glob("digits*.db")))
    rows = [
        (step, json.loads(row)) for step, row in stored.execute("select step, metrics from metrics")
    ]
    losses = [(step, row["train/loss"]) for step, row in rows if "train/loss" in row]
    assert sorted(losses) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (3, 1 / 3), (4, 0.25)]
    assert [row["final/top1"] for _, row in rows if "final/top1" in row] == [41.5]


def test_a_missing_tracker_package_is_a_config_error(
    prepared_of: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"trackio is not installed; pip install -e '\.\["):
        make_tracker(prepared_of("trackio"), RunDirectory(tmp_path), 0)


def test_tracker_none_writes_nothing(prepared_of: Callable[[str], Any], tmp_path: Path) -> None:
    tracker = make_tracker(prepared_of("none"), RunDirectory(tmp_path), 0)
    log_steps(tracker, range(1, 3))
    tracker.finish(1.0)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_the_tracker_is_not_part_of_the_experiment(prepared_of: Callable[[str], Any]) -> None:
    assert "tracker" in NON_EXPERIMENT_KEYS
    with pytest.raises(ConfigError, match="tracker=wandb: expected one of tensorboard, trackio"):
        prepared_of("wandb")


def test_importance_weights_are_averaged_over_a_stage() -> None:
    def layer(stage: str, bn: float) -> dict[str, object]:
        return {"stage": stage, "mean": {"bn": bn, "ln": 1 - bn}, "variance": {"bn": 1 - bn}}

    means = stage_mean_weights([layer("res1", 0.5), layer("res2", 0.2), layer("res2", 0.4)])
    assert means == pytest.approx(
        {
            "importance_mean/res1/bn": 0.5,
            "importance_mean/res1/ln": 0.5,
            "importance_variance/res1/bn": 0.5,
            "importance_mean/res2/bn": 0.3,
            "importance_mean/res2/ln": 0.7,
            "importance_variance/res2/bn": 0.7,
        }
    )
