"""Which evaluation of a run counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import config, result, write_run

from sn_imagenet.runs import FINISHED, NOT_EVALUATED, deviations_from_config, read_run
from sn_imagenet.runs.evaluations import counted_evaluations, same_images

SETTINGS = config("sn", "8x2")
FINGERPRINT = {"train": {"samples": 1397, "digest": "a"}, "val": {"samples": 400, "digest": "b"}}


def evaluation(**changed: Any) -> dict[str, Any]:
    """An evaluation as in the run's config, with ``changed`` entries, also of its calibration."""
    (original, _) = result(SETTINGS, 90.0)["evaluations"]
    calibration = {key: changed.pop(key, value) for key, value in original["calibration"].items()}
    data = {"name": "digits", "val": FINGERPRINT["val"]}
    return {**original, "data": data, "precision": "fp32", "calibration": calibration, **changed}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"samples_used": 4, "by": "evaluate.py", "provenance": {"git_dirty": True}}, []),
        ({"data": {"name": "digits", "val": None}, "precision": None}, []),
        ({"samples_requested": 1000}, ["1000 samples"]),
        ({"samples_requested": "all", "seed": 2}, ["all samples", "seed 2"]),
        ({"estimator": "population"}, ["population"]),
        ({"precision": "bf16"}, ["bf16"]),
        ({"checkpoint": {"file": "last.pt", "epoch": 10, "step": 870}}, ["last.pt"]),
        ({"data": {"name": "noisy", "val": FINGERPRINT["val"]}}, ["on noisy"]),
        ({"data": {"name": "digits", "val": {"samples": 400}}}, ["other images"]),
    ],
)
def test_deviations_of_an_evaluation_from_the_run(
    changed: dict[str, Any], words: list[str]
) -> None:
    settings = {**SETTINGS, "trainer": {**SETTINGS["trainer"], "precision": "fp32"}}
    changed_evaluation = evaluation(**changed)
    assert deviations_from_config(changed_evaluation, settings, FINGERPRINT) == words
    counted = counted_evaluations([changed_evaluation], settings, FINGERPRINT)
    assert counted == ({} if words else {"batch_average": changed_evaluation})


def test_the_first_evaluation_without_deviations_counts(tmp_path: Path) -> None:
    quick = evaluation(samples_requested=100, top1=10.0)
    first, again = evaluation(top1=91.0), evaluation(top1=92.0)
    moving = evaluation(statistics="moving_average", calibration=None, top1=89.0)
    outcome = result(SETTINGS, evaluations=[quick, moving, first, again])
    directory = write_run(tmp_path, SETTINGS, outcome)
    run = read_run(directory)
    assert (run.state, run.score_value(), run.score_value("moving_average")) == (
        FINISHED,
        91.0,
        89.0,
    )
    assert len(run.evaluations) == 4

    (directory / "result.json").write_text(json.dumps({**outcome, "evaluations": [quick, moving]}))
    run = read_run(directory)
    assert (run.state, run.score_value(), run.score_value("moving_average")) == (
        NOT_EVALUATED,
        None,
        89.0,
    )


def test_contents_count_only_if_both_were_read() -> None:
    """A training before scripts/prepare_data.py has read the files, and an evaluation after it."""
    images = {"samples": 2, "sha256": "a"}
    read, other = ({**images, "contents": contents} for contents in "bc")
    assert same_images(images, read) and same_images(read, images) and same_images(read, read)
    assert not same_images(read, other)
    assert not same_images(images, {**read, "samples": 3})
    assert not same_images(images, None)
