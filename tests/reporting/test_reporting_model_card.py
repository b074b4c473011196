"""The model card of an export agrees with its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from run_files import config, result, write_run

from sn_imagenet.reporting.model_card import model_card
from sn_imagenet.reporting.statistics import proportion_interval
from sn_imagenet.runs import Run, read_run

FACTS: dict[str, Any] = {
    "architecture": "resnet50_mini",
    "statistics": "batch_average",
    "loading": [("With timm:", "import timm\n")],
    "files": {"model.safetensors": "the weights"},
}


def evaluated(root: Path) -> Run:
    settings = config("sn", "8x2", seed=3)
    return read_run(write_run(root, settings, result(settings, top1=91.25, other_top1=90.5)))


def test_the_card_has_accuracy_uncertainty_and_departures(tmp_path: Path) -> None:
    card = model_card(evaluated(tmp_path), license="mit", **FACTS)
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["library_name"]) == ("mit", "timm")
    assert [head["pipeline_tag"]] == head["tags"] == ["image-classification"]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in card.splitlines() if "|" in line]
    low, high = proportion_interval(365, 400)
    assert "these weights hold: batch average. The 95 % interval of their" in card
    assert f"top-1 is [{low:.2f}, {high:.2f}] (Wilson)" in card
    assert ["batch average", "91.25", "99.50", "365/400"] in [row[5:] for row in rows]
    assert ["moving average", "90.50"] in [row[5:7] for row in rows]
    assert ["epochs", "100", "10"] in rows
    assert ["model.safetensors", "the weights"] in rows
    for text in (
        "seed 3",
        "SN, (8,2), digits",
        "`0123456789ab`",
        "`paper`",
        "```python\nimport timm",
    ):
        assert text in card


def test_an_unknown_license_is_stated(tmp_path: Path) -> None:
    assert "license of these weights is not specified" in model_card(evaluated(tmp_path), **FACTS)


def test_a_run_without_evaluation_is_stated(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, config("sn", "8x2")))
    assert "Not evaluated: the run is interrupted." in model_card(run, **FACTS)
