"""What building a task refuses, phases of an epoch, and which parts of a config are a task's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.data.seeding import seeded
from sn_imagenet.errors import ConfigError
from sn_imagenet.runs.scores import TOP1, Score, read_score
from sn_imagenet.tasks import build_task, prepare
from sn_imagenet.tasks.classification import Classification
from sn_imagenet.tasks.task import phase_position, require_task_placement

Compose = Callable[..., ExperimentConfig]


class Needy(Classification):
    requires = {"no_such_module": "detection"}  # noqa: RUF012


def test_a_missing_package_is_told_with_the_line_that_installs_it(composed: Compose) -> None:
    config = composed("data=digits", f"task.target={__name__}.Needy")
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[detection\]'"):
        build_task(config)


class Overwriting(Classification):
    sums = ("loss",)


class Uncalibrated(Classification):
    calibrates = False


class ByReplica(Classification):
    replica_by_replica = True


def test_a_sum_cannot_replace_what_training_records(composed: Compose) -> None:
    config = composed("data=digits", f"task.target={__name__}.Overwriting")
    with pytest.raises(ConfigError, match="a sum cannot be named loss"):
        build_task(config)


def test_a_task_without_calibration_needs_statistics_that_it_has(composed: Compose) -> None:
    options = ("data=digits", "model=resnet14_mini", f"task.target={__name__}.Uncalibrated")
    with pytest.raises(ConfigError, match=r"norm=sn has moving_average only"):
        prepare(composed(*options, "norm=sn", "batch=8x2"))
    prepare(composed(*options, "norm=sn", "batch=8x2", "norm.test_statistics=moving_average"))


def test_draws_by_replica_need_a_pass_for_each(composed: Compose) -> None:
    config = composed("data=digits", f"task.target={__name__}.ByReplica", "batch=4x2")
    assert require_task_placement(build_task(config), config, 1).microbatches_per_step == 4
    with pytest.raises(ConfigError, match="8 processes for 4 replicas"):
        require_task_placement(build_task(config), config, 8)


@pytest.mark.parametrize("key", ["name", "target"])
def test_a_task_has_a_name_and_a_target(composed: Compose, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"task\.{key} is missing"):
        composed("data=digits", f"~task.{key}")


def test_classification_is_the_default_and_leaves_no_trace(composed: Compose) -> None:
    config = composed("data=digits")
    values = config.to_dict()
    assert "task" not in values and "head" not in values["norm"]
    assert isinstance(build_task(from_dict(values)), Classification)
    assert from_dict(values).to_dict() == values


def test_a_head_is_looked_up_as_the_backbone_is_and_names_the_run(composed: Compose) -> None:
    config = composed("data=digits", "norm=frozen_bn", "norm.head=sn", "batch=8x1")
    assert config.norm.head["target"] == "sn_imagenet.norms.SwitchNorm2d"
    assert config.norm_label == "frozen_bn+sn"
    assert config.run_dir == "runs/digits/resnet50/frozen_bn+sn/8x1/seed0"
    assert from_dict(config.to_dict()).norm.head == config.norm.head
    assert config.norm.head["args"]["omega"] == ["in", "ln"]


def test_single_sample_changes_apply_unless_the_task_says_otherwise(composed: Compose) -> None:
    single = ("data=digits", "norm=sn", "batch=8x1")
    assert composed(*single).norm.args["omega"] == ["in", "ln"]
    other = composed(*single, "+task.single_sample=false")
    assert other.norm.args["omega"] == ["in", "ln", "bn"]
    assert other.to_dict()["task"]["single_sample"] is False


def test_a_network_without_feature_maps_is_an_error(composed: Compose) -> None:
    image_size = ("data.image_size=224", "data.resize_size=224")
    config = composed("data=digits", "model.name=vit_tiny_patch16_224", *image_size)
    with pytest.raises(ConfigError, match=r"model\.name=vit_tiny_patch16_224: images of 224 x 224"):
        prepare(config)


def test_the_check_does_not_change_the_running_statistics(composed: Compose) -> None:
    network = prepare(composed("data=digits", "model=resnet14_mini", "norm=bn")).network
    assert int(network.get_buffer("bn1.num_batches_tracked")) == 0
    assert not network.get_buffer("bn1.running_mean").any()


def test_phases_follow_one_another() -> None:
    lengths = {"a": 3, "b": 2}
    assert list(phase_position(lengths, 0)) == [("a", 0), ("b", 0)]
    assert list(phase_position(lengths, 2)) == [("a", 2), ("b", 0)]
    assert list(phase_position(lengths, 3)) == [("b", 0)]
    assert list(phase_position(lengths, 4)) == [("b", 1)]
    assert list(phase_position(lengths, 5)) == []


def test_a_score_is_read_as_it_was_written() -> None:
    score = Score("mae", "MAE", "px", higher_is_better=False)
    assert read_score(score.to_dict()) == score
    assert read_score(None) == TOP1
    assert score.format(3.14159265) == "MAE 3.1416" and TOP1.format(95.126) == "top-1 95.13"
    with pytest.raises(TypeError):
        read_score(["mae"])


def test_the_global_generator_is_seeded_within_a_block_only() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(3):
            draws.append(torch.rand(4))
    assert torch.equal(*draws)
    assert torch.equal(torch.random.get_rng_state(), before)
