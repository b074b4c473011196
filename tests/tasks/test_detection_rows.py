"""Rows of the tables: pairs of methods, and the classifier that each starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from trained_runs import save_run, write_trained

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import read_weights
from sn_imagenet.sweeps.planned import plan_runs
from sn_imagenet.tasks import build_task
from sn_imagenet.tasks.detection.models import head_norm

Compose = Callable[..., ExperimentConfig]
ROOT = Path(__file__).parents[2]
MINI = ("task=detection", "model=faster_rcnn_fpn_mini")


@pytest.mark.parametrize(
    ("pair", "folder", "heads"),
    [
        ("frozen_bn", "frozen_bn", None),
        ("frozen_bn_gn", "frozen_bn+gn", "gn"),
        ("frozen_bn_sn", "frozen_bn+sn", "sn"),
        ("gn_gn", "gn", "gn"),
        ("gn_sn", "gn+sn", "sn"),
        ("sn_sn", "sn", "sn"),
    ],
)
def test_a_pair_names_the_methods_of_a_row(
    composed: Compose, pair: str, folder: str, heads: str | None
) -> None:
    config = composed(*MINI, f"pair={pair}", "init=some/run")
    assert config.run_dir.split("/")[3] == folder
    head = head_norm(config)
    assert (head.name if head else None) == heads
    assert composed(*MINI, f"pair={pair}", "norm.head=bn", "init=x").norm.head["name"] == "bn"
    # One row has one name.
    named = composed(*MINI, f"pair={pair}", f"norm.head={heads}", "init=x") if heads else config
    assert (named.norm_label, named.run_dir) == (config.norm_label, config.run_dir)


def classifier(composed: Compose, root: Path, norm: str, seed: int = 0, batch: str = "8x2") -> Path:
    """The directory of a finished run."""
    config = composed("data=digits", "model=resnet14_mini", f"norm={norm}", f"seed={seed}",
                      f"batch={batch}", f"runs_dir={root}")  # fmt: skip
    return write_trained(config).path


@pytest.mark.parametrize("model", ["faster_rcnn_fpn_mini", "faster_rcnn_c4_mini"])
@pytest.mark.parametrize(("norm", "pretrained"), [("sn", "sn"), ("frozen_bn", "bn"), ("gn", "gn")])
def test_a_detector_starts_from_a_classifier(
    composed: Compose,
    drawn_options: tuple[str, ...],
    tmp_path: Path,
    model: str,
    norm: str,
    pretrained: str,
) -> None:
    run = classifier(composed, tmp_path, pretrained)
    config = composed("task=detection", f"model={model}", f"norm={norm}", f"init_from={tmp_path}",
                      *drawn_options)  # fmt: skip
    assert config.init == str(run) and "-pretrained/" in config.run_dir
    task = build_task(config)
    data = task.datasets()
    network: Any = task.network(data)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    saved = read_weights(run)
    assert task.load_initial(network, data, saved) == []
    loaded = 0
    for name, value in network.state_dict().items():
        _, _, key = name.partition("backbone.body.")
        key = key or name.removeprefix("roi_heads.box_head.") * ("layer4" in name)
        if key:
            loaded += 1
            assert torch.equal(value, saved.weights[key]), name
        else:
            assert torch.equal(value, before[name]), name
    expected = [k for k in saved.weights if not k.startswith("fc.")]
    counters = [k for k in expected if k.endswith("num_batches_tracked")]
    assert loaded == len(expected) - (len(counters) if norm == "frozen_bn" else 0)


def test_another_method_is_refused(
    composed: Compose, drawn_options: tuple[str, ...], tmp_path: Path
) -> None:
    run = classifier(composed, tmp_path, "bn")
    task = build_task(composed(*MINI, "norm=gn", f"init={run}", *drawn_options))
    data = task.datasets()
    with pytest.raises(ConfigError, match="does not match this one"):
        task.load_initial(task.network(data), data, read_weights(run))


def test_a_detector_starts_from_a_detector_of_other_classes(
    composed: Compose, drawn_options: tuple[str, ...], tmp_path: Path
) -> None:
    config = composed(*MINI, "norm=gn", "init=x", *drawn_options)
    task = build_task(config)
    data = task.datasets()
    other = build_task(replace(config, seed=5)).network(data)
    for number, (classes, new) in enumerate(((["square", "round"], 0), (["square", "oval"], 1))):
        run = save_run(replace(config, run_dir=str(tmp_path / str(number))), other, classes)
        ours: Any = task.network(data)
        before = ours.roi_heads.box_predictor.cls_score.weight.clone()
        assert len(task.load_initial(ours, data, read_weights(run))) == new
        assert torch.equal(ours.roi_heads.box_predictor.cls_score.weight, before) == new


def test_init_from_finds_one_run(composed: Compose, tmp_path: Path) -> None:
    for seed in (0, 1):
        classifier(composed, tmp_path, "sn", seed)
    words = (*MINI, "norm=sn", f"init_from={tmp_path}")
    assert composed(*words, "seed=1").init == str(tmp_path / "digits/resnet14_mini/sn/8x2/seed1")
    with pytest.raises(ConfigError, match=r"no finished run of model=resnet14_mini norm=sn seed=2"):
        composed(*words, "seed=2")
    classifier(composed, tmp_path, "sn", 0, batch="8x4")
    with pytest.raises(ConfigError, match=r"2 runs of .* seed=0 there \(.*8x2/seed0, .*8x4/seed0"):
        composed(*words)
    config = composed(*MINI, "norm=sn", f"init_from={tmp_path / 'digits/resnet14_mini/*/8x4'}")
    assert config.init is not None and config.init.endswith("8x4/seed0")


def test_a_sweep_lists_all_runs_that_are_missing(composed: Compose, tmp_path: Path) -> None:
    classifier(composed, tmp_path, "bn")
    jobs = []
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for pair in ("frozen_bn", "frozen_bn_sn", "gn_gn", "gn_sn", "sn_sn"):
            words = [*MINI, f"pair={pair}", f"init_from={tmp_path}"]
            jobs.append((words, compose("config", words)))
        with pytest.raises(ConfigError) as error:
            plan_runs(jobs)
        planned = plan_runs(jobs[:2])
    assert [line.strip() for line in str(error.value).splitlines()] == [
        f"init_from={tmp_path}: no finished run of model=resnet14_mini norm={norm} seed=0 there"
        for norm in ("gn", "sn")
    ]
    assert [run.config.norm_label for run in planned] == ["frozen_bn", "frozen_bn+sn"]


@pytest.mark.parametrize(
    ("sweep", "model", "batch", "steps"),
    [
        ("table3", "faster_rcnn_c4", "4x3", 120_000),
        ("table4", "faster_rcnn_fpn", "8x2", 90_000),
        ("table5", "mask_rcnn_fpn", "8x2", 180_000),
    ],
)
def test_the_sweep_of_a_table_is_the_papers_setting(
    composed: Compose, sweep: str, model: str, batch: str, steps: int
) -> None:
    config = composed(f"sweep={sweep}", "norm=sn", "init_from=null", "init=some/run")
    assert (config.model.name, config.batch.name) == (model, batch)
    assert config.trainer.max_steps == steps and config.trainer.epochs is None
    fingerprint = {"train": {"images": 118_287}, "val": {"images": 5_000}}
    assert build_task(config).departures(fingerprint) == []
    with pytest.raises(ConfigError, match=r"init_from=runs/imagenet/resnet50/\*/8x32: no finished"):
        composed(f"sweep={sweep}", "norm=sn")
