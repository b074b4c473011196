"""Architecture search as a task: its data, its evaluation, whole runs, kills in both phases."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tasks_custom import check_resumed, result, rows, run

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.data.sources import open_source
from sn_imagenet.errors import UserError
from sn_imagenet.tasks import build_task, prepare
from sn_imagenet.tasks.architecture_search.controller import Sampled, to_architectures
from sn_imagenet.tasks.architecture_search.evaluator import SearchEvaluator

Compose = Callable[..., ExperimentConfig]
CONFIGS = Path(__file__).parents[2] / "configs"
# 283 images: 198 for weights (12 steps), 85 for rewards (5 batches, dealt to 3 steps an epoch).
SMALL = ("task=architecture_search", "data=digits", "data.subset=0.2", "task.reward_fraction=0.28",
         "batch=1x16", "model.args.cells=1", "model.args.filters=2", "model.args.blocks=2",
         "task.controller.steps=3", "task.controller.samples=3", "task.candidates=2",
         "trainer.epochs=2", "trainer.log_every=1", "tracker=none")  # fmt: skip
STEPS = (12, 3)  # of the phases of an epoch


def test_the_parts_are_disjoint_and_the_same_for_every_seed(composed: Compose) -> None:
    options = ("task=architecture_search", "data=digits", "batch=1x16", "task.reward_fraction=0.2")
    parts = []
    for seed in (0, 1):
        data = build_task(composed(*options, "norm=ln", f"seed={seed}")).datasets()
        assert data.val is not None
        parts.append((data.train.source.indices, data.val.source.indices, data.fingerprint))  # type: ignore[attr-defined]
    weights, rewards, fingerprint = parts[0]
    assert sorted([*weights, *rewards]) == list(range(1397))
    for label in range(10):
        counts = [(part.source.labels == label).sum() for part in (data.train, data.val)]
        assert counts[1] == -(-sum(counts) // 5)
    assert np.array_equal(weights, parts[1][0]) and fingerprint == parts[1][2]
    assert {name: part["samples"] for name, part in fingerprint.items()} == {
        "train": len(weights),
        "val": len(rewards),
        "test": 400,
    }


def test_rewards_are_dealt_from_repeated_passes(composed: Compose) -> None:
    task = build_task(composed(*SMALL, "norm=ln"))
    loader = task.batches("controller", task.datasets(), torch.device("cpu"))
    assert len(loader) == 3
    batches = [b.images.flatten(1) for epoch in range(5) for b in loader.epoch(epoch)]
    assert len(batches) == 15
    passes = [torch.cat(batches[first : first + 5]) for first in (0, 5, 10)]
    assert [len(images.unique(dim=0)) for images in passes] == [80, 80, 80]  # each image once
    assert not torch.equal(passes[0], passes[1])
    resumed = [batch.images.flatten(1) for batch in loader.epoch(3, 1)]
    assert all(map(torch.equal, resumed, batches[10:12])) and len(resumed) == 2


def test_batches_of_an_evaluation_hold_all_classes(composed: Compose) -> None:
    """They share statistics, and the images of a source are in the order of their classes."""
    task = build_task(composed(*SMALL, "norm=ln"))
    data = task.datasets()
    assert data.val is not None
    labels = np.sort(data.val.source.labels)  # as a folder's are
    data.val.source.labels[:] = labels  # type: ignore[attr-defined]
    batches = list(task.evaluation_batches(data, 999, torch.device("cpu")))
    assert [part for part, _ in batches] == [0] * 6 + [1] * 25
    assert [len(batch) for _, batch in batches[:6]] == [16] * 5 + [5]
    assert min(len(batch.labels.unique()) for _, batch in batches[:5]) > 4
    seen = torch.cat([batch.labels for part, batch in batches if part == 1])
    _, test = open_source(task.config.data)
    assert torch.equal(seen.sort().values, torch.from_numpy(np.sort(test.labels)))


def test_the_best_architecture_is_chosen_on_the_images_for_rewards() -> None:
    """Four sampled architectures, right on 2, 3, 1 and 4 of four images."""
    decisions = torch.zeros(4, 16, dtype=torch.int64)
    for row, count in enumerate((2, 3, 1, 4)):
        decisions[row, 1 : 2 * count : 2] = 4  # identity

    def forward(part: str, *inputs: Any) -> Any:
        if part == "policy":
            assert inputs == (4,)
            return Sampled(decisions, torch.zeros(4), torch.zeros(4))
        images, architecture = inputs
        right = images[:, 0] < str(architecture).count("identity")
        return torch.stack([right, ~right], 1).float()

    evaluator = SearchEvaluator(4)
    for part, values in ((0, [0, 1, 2, 3]), (0, [0, 1, 2, 3]), (1, [0, 3, 4, 5, 6])):
        images, labels = torch.tensor(values)[:, None], torch.zeros(len(values), dtype=torch.int64)
        evaluator.update(forward, (part, ImageBatch(images, labels)))
    numbers = evaluator.finish()
    assert numbers["val_accuracy"] == pytest.approx((50 + 75 + 25 + 100) / 4)
    assert (numbers["best_val_accuracy"], numbers["test_accuracy"]) == (100, 40)
    assert numbers["seen"] == 8
    assert (numbers["architecture"],) == tuple(to_architectures(decisions[3:]))
    assert numbers["architecture"]["normal"][0] == [0, "identity", 0, "identity"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("norm=bn",), "norm=bn: does not apply to an LSTM"),
        (("norm=in",), "norm=in: does not apply to an LSTM"),
        (("norm=ln", "data.image_size=7"), "data.image_size=7: expected at least 8"),
        (("norm=ln", "batch=1x100"), "gives 85 images for rewards, and a batch has 100"),
        (("norm=ln", "task.reward_fraction=1.5"), "task.reward_fraction=1.5: expected a fraction"),
        (("norm=ln", "task.reward_fraction=0.999"), "gives 0 images for weights"),
        (("norm=ln", "task.placement=both"), "task.placement=both: expected one of lstm, gates"),
        (("norm=ln", "task.lr_min=0.1"), "task.lr_min=0.1: expected 0 to 0.005"),
        (("norm=ln", "task.controller.eps=0"), "task.controller.eps=0: expected > 0"),
        (("norm=ln", "task.controller.samples=0"), "samples=0: expected > 0"),
        (("norm=ln", "model.name=resnet14_mini"), "searches architectures of model=cell"),
        (("norm=ln", "task.candidates=0"), "task.candidates=0: expected at least 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    composed: Compose, options: tuple[str, ...], message: str
) -> None:
    config = composed(*SMALL, *options)
    with pytest.raises(UserError) as error:
        prepare(config)
    assert message in str(error.value)


def test_departures_name_the_choices_that_the_paper_leaves_open(composed: Compose) -> None:
    def items(*options: str) -> list[str]:
        task = build_task(composed("task=architecture_search", "norm=sn", *options))
        return [entry["item"] for entry in task.departures({})]

    choices = items("data=cifar10")
    assert "places of the normalization layers" in choices and "epochs" not in choices
    small = items("data=digits", "batch=1x16", "trainer.epochs=2", "model.args.cells=1")
    assert set(small) - set(choices) == {"data", "batch", "epochs", "cells"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``runs_dir`` of an uninterrupted search."""
    runs = tmp_path_factory.mktemp("runs")
    run(CONFIGS, "train.py", *SMALL, "norm=sn", f"runs_dir={runs}")
    return runs


def search_dir(runs: Path, norm: str = "sn") -> Path:
    return runs / "digits+architecture_search" / "cell" / norm / "1x16" / "seed0"


@pytest.mark.slow
def test_a_search_alternates_its_phases_and_keeps_both_optimizers(finished: Path) -> None:
    run_dir = search_dir(finished)
    training = [row for row in rows(run_dir) if row["kind"] == "train"]
    keys = [{"train_accuracy", "reward", "entropy"} & row.keys() for row in training]
    assert keys == ([{"train_accuracy"}] * STEPS[0] + [{"reward", "entropy"}] * STEPS[1]) * 2
    assert [row["lr"] for row in training[11:13]] == pytest.approx([0.005, 0.0035])
    state = torch.load(run_dir / "last.pt")
    weights, controller = (state["optimizers"][name]["state"] for name in ("weights", "controller"))
    assert any(one["momentum_buffer"].any() for one in weights.values())
    assert {int(one["step"]) for one in controller.values()} == {6}
    assert state["model"]["baseline"] > 0
    epochs = [row for row in rows(run_dir) if row["kind"] == "epoch"]
    assert [set(row["importance_weights"]) for row in epochs] == [
        {"policy.norm_input", "policy.norm_hidden"}
    ] * 2
    record = result(run_dir)
    assert record["cell"]["norm_args"] == {"omega": ["ln", "gn"], "num_groups": 4}
    (evaluation,) = record["evaluations"]
    assert evaluation["statistics"] == "sample" and 0 <= evaluation["val_accuracy"] <= 100


@pytest.mark.slow
def test_a_search_that_is_killed_in_each_phase_resumes_bit_for_bit(
    finished: Path, tmp_path: Path
) -> None:
    whole, steps = search_dir(finished), (5, 14, 20, 29)  # weights, controller, both again
    check_resumed(whole, steps, tmp_path, CONFIGS, "train.py", *SMALL, "norm=sn")
    first, second = (result(run_dir)["evaluations"][0] for run_dir in (tmp_path, whole))
    assert first["architecture"] == second["architecture"]


@pytest.mark.slow
def test_what_a_search_finds_is_trained_from_scratch(finished: Path) -> None:
    run_dir = search_dir(finished)
    (evaluation,) = result(run_dir)["evaluations"]
    file = run_dir / "architecture.json"
    assert json.loads(file.read_text()) == evaluation["architecture"]
    assert (run_dir / "cells.png").stat().st_size > 5000
    scratch = ("data=digits", "data.subset=0.2", "model=cell", "model.args.cells=1",
               "model.args.filters=8", f"model.args.architecture={file}", "norm=bn", "batch=1x16",
               "protocol.base_lr=1", "+task.row=sn", "trainer.epochs=6", "tracker=none",
               "calibration.samples=64")  # fmt: skip
    run(CONFIGS, "train.py", *scratch, f"runs_dir={finished}")
    trained = finished / "digits" / "cell-sn" / "bn" / "1x16" / "seed0"
    record = result(trained)
    assert record["config"]["model"]["args"]["architecture"] == evaluation["architecture"]
    assert record["evaluations"][0]["top1"] > 30
    again = run(CONFIGS, "evaluate.py", f"run={trained}", "calibration.samples=64")
    assert f"{record['evaluations'][0]['top1']:.2f}" in again
    run(CONFIGS, "scripts/export.py", trained, "--out", finished / "export")
    figures = run(CONFIGS, "scripts/make_figures.py", "--runs", finished, "--out", finished / "out")
    assert "/fig6b.pdf" in figures
    run(CONFIGS, "evaluate.py", f"run={run_dir}")
    assert result(run_dir)["evaluations"][1]["architecture"] == evaluation["architecture"]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["random", "none"])
def test_search_without_normalization_or_controller(tmp_path: Path, norm: str) -> None:
    run(CONFIGS, "train.py", *SMALL, f"norm={norm}", "trainer.epochs=1", f"runs_dir={tmp_path}")
    run_dir = search_dir(tmp_path, norm)
    state = torch.load(run_dir / "final.pt")["model"]
    assert state["baseline"] > 0  # the rewards of an epoch are computed all the same
    assert not any("norm_" in name and name.startswith("policy") for name in state)
    assert result(run_dir)["status"] == "finished"


@pytest.mark.slow
def test_a_search_is_one_process(tmp_path: Path) -> None:
    words = ("train.py", *SMALL, "norm=ln", f"runs_dir={tmp_path}")
    output = run(CONFIGS, *words, processes=2, code=1)
    assert "task=architecture_search runs in one process only, but 2 were started" in output


def test_the_config_of_a_search_is_stable(composed: Compose) -> None:
    """The defaults of the task are those of ENAS's code; the command line overrides them."""
    config = composed("task=architecture_search", "norm=sn")
    assert (config.data.name, config.augment.name, config.batch.name) == (
        *("cifar10", "crop_flip", "1x160"),
    )
    assert config.norm.test_statistics == "sample" and config.initial_lr == 0.05
    assert (config.protocol.weight_decay, config.protocol.dropout) == (2e-4, 0.1)
    task = build_task(config)
    controller = dataclasses.asdict(task.controller)  # type: ignore[attr-defined]
    assert controller["tanh"] == pytest.approx(2.5 * controller["op_tanh"])
    assert (controller["steps"], controller["samples"]) == (30, 10)
