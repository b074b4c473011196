"""The typed configuration: which configs compose, their values, and the errors of invalid ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import sn_imagenet.config
from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.runs import config_differences

CONFIGS = Path(__file__).parents[1] / "configs"
GROUPS = ("norm", "batch", "data", "model", "augment", "protocol")
Compose = Callable[..., ExperimentConfig]


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("shift", range(4))
def test_every_choice_composes_with_many_others(composed: Compose, shift: int) -> None:
    """Combine the groups' lists row by row, each list shifted. All 20,000 and more combinations
    would take an hour, and groups depend on each other only in run_dir, augment and single_sample.
    """
    lists = {group: choices(group) for group in GROUPS}
    for row in range(max(map(len, lists.values()))):
        chosen = {
            group: names[(row + shift * column) % len(names)]
            for column, (group, names) in enumerate(lists.items())
        }
        config = composed(*(f"{group}={name}" for group, name in chosen.items()))
        assert config.norm.name == chosen["norm"]
        assert config.augment.name == chosen["augment"]  # overrides the default of the data
        assert config.run_dir == (
            f"runs/{config.data.name}/{config.model.name}/{chosen['norm']}/{chosen['batch']}/seed0"
        )
        assert from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("data", "augment"),
    [("digits", "crop"), ("cifar10", "crop_flip"), ("imagenet", "official")],
)
def test_data_chooses_the_default_augmentation(composed: Compose, data: str, augment: str) -> None:
    assert composed(f"data={data}").augment.name == augment


def test_the_defaults_are_the_papers_sn_at_8x32(composed: Compose) -> None:
    config = composed()
    assert config.run_dir == "runs/imagenet/resnet50/sn/8x32/seed0"
    assert (config.norm.name, config.norm.args) == ("sn", {"omega": ["in", "ln", "bn"]})
    assert (config.batch.total, config.trainer.epochs) == (256, 100)
    assert (config.protocol.momentum, config.protocol.weight_decay) == (0.9, 1e-4)
    assert not config.protocol.zero_init_last_gamma
    assert config.protocol.dropout == 0
    assert config.trainer.precision == "fp32"


def test_batch_lists_the_settings_of_table_2() -> None:
    assert set(choices("batch")) == {
        "8x32", "8x16", "8x8", "8x4", "8x2", "1x16", "1x32", "8x1", "1x8"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "lr"),
    [
        ("8x32", 0.1), ("8x16", 0.05), ("8x8", 0.025), ("8x4", 0.0125), ("8x2", 0.00625),
        ("1x16", 0.00625), ("1x32", 0.0125), ("8x1", 0.003125), ("1x8", 0.003125),
    ],
)  # fmt: skip
def test_the_lr_scales_with_the_global_batch(composed: Compose, batch: str, lr: float) -> None:
    config = composed(f"batch={batch}")
    gpus, samples = map(int, batch.split("x"))
    assert (config.batch.gpus, config.batch.samples_per_gpu) == (gpus, samples)
    assert config.batch.name == batch
    assert config.initial_lr == pytest.approx(lr, rel=1e-12)


def test_a_setting_in_a_searched_folder_has_precedence(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch" / "4x6.yaml").write_text("gpus: 4\nsamples_per_gpu: 6\nname: mine\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    assert composed(search, "batch=4x6").batch.name == "mine"
    assert composed(search, "batch=4x7").batch.name == "4x7"


def test_one_sample_per_gpu_removes_bn_from_sn(composed: Compose) -> None:
    norm = composed("batch=8x1", "norm=sn").norm
    assert norm.args == {"omega": ["in", "ln"]}
    assert norm.test_statistics == "sample"
    for other in ("1x8", "8x2"):
        assert composed(f"batch={other}", "norm=sn").norm.args == {"omega": ["in", "ln", "bn"]}
    assert composed("batch=8x1", "norm=bn").norm.args == {}
    assert composed("batch=8x1", "norm.args.omega=[ln]").norm.args == {"omega": ["ln"]}
    assert composed("batch=8x1", "norm.args.omega=[gn,bn]").norm.args == {"omega": ["gn"]}


def test_a_config_survives_a_round_trip_through_a_dict(composed: Compose) -> None:
    for overrides in (
        ["data=digits", "batch=8x1", "+model.args.stem_width=16"],
        ["data=imagefolder", "data.train=a", "data.val=b", "trainer.max_steps=3"],
        ["protocol=official_code", "calibration.samples=all", "trainer.replicas_per_pass=2"],
    ):
        config = composed(*overrides)
        values = config.to_dict()
        assert from_dict(values) == config
        assert from_dict(values).to_dict() == values
        # Earlier versions had two more options.
        removed = {"trainer": {"compile": "default"}, "checkpoint": {"on_error": "stop"}}
        earlier = {**values, **{key: {**values[key], **removed[key]} for key in removed}}
        assert from_dict(earlier) == config and not config_differences(earlier, values)
        # Through the file of a run directory.
        text = OmegaConf.to_yaml(OmegaConf.create(values))
        loaded = OmegaConf.to_container(OmegaConf.create(text))
        assert loaded == values


SECTIONS = {
    **{field.name: field.type for field in fields(ExperimentConfig) if field.name != "task"},
    "config": "ExperimentConfig",
}


@pytest.mark.parametrize("group", ["config", *(s for s in SECTIONS if (CONFIGS / s).is_dir())])
def test_a_default_is_stated_once(group: str) -> None:
    """Either the YAML choices state a default, or the class does for keys that a choice may omit. A
    null in a choice only makes the key known to the command line.
    """
    defaults = {
        field.name: field.default if field.default is not MISSING else field.default_factory()
        for field in fields(getattr(sn_imagenet.config, SECTIONS[group]))
        if (field.default, field.default_factory) != (MISSING, MISSING)
    }
    files = [CONFIGS / "config.yaml"] if group == "config" else (CONFIGS / group).glob("*.yaml")
    for file in files:
        values = yaml.safe_load(file.read_text())
        twice = [k for k in defaults if values.get(k) is not None and values[k] == defaults[k]]
        assert not twice, f"{file.name} and the class of {group} both state {twice}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch.gpus=0", r"batch\.gpus=0: expected at least 1"),
        ("batch.samples_per_gpu=-1", r"batch\.samples_per_gpu=-1: expected at least 1"),
        ("norm.test_statistics=none", r"norm\.test_statistics=none: expected one of moving_av"),
        ("+norm.single_sample.omega=[in]", r"norm\.single_sample has \['omega'\]: expected 'with"),
        ("augment.lighting_std=-0.1", r"augment\.lighting_std=-0\.1: expected at least 0"),
        ("data.image_size=0", r"data\.image_size=0: expected at least 1"),
        ("data.resize_size=200", r"data\.resize_size=200: expected at least .*image_size=224"),
        ("data.decode=best", r"data\.decode=best: expected one of exact, fast"),
        ("data.subset=1.5", r"data\.subset=1\.5: expected null or a fraction"),
        ("data.classes=1", r"data\.classes=1: expected null or at least 2"),
        ("++data.workers=-1", r"data\.workers=-1: expected at least 0"),
        ("++data.std=[0.2,0,0.2]", r"data\.std=\[0\.2, 0\.0, 0\.2\]: expected"),
        ("++data.std=[0.2]", r"data\.std=\[0\.2\]: expected"),
        ("++data.mean=[0.2,0.2]", r"data\.mean=\[0\.2, 0\.2\]: expected"),
        ("protocol.base_lr=0", r"protocol\.base_lr=0(\.0)?: expected > 0"),
        ("protocol.base_lr=nan", r"protocol\.base_lr=nan: expected > 0"),
        ("protocol.lr_reference_batch=0", r"protocol\.lr_reference_batch=0: expected at least 1"),
        ("protocol.dropout=1", r"protocol\.dropout=1(\.0)?: expected 0 <= p < 1"),
        ("protocol.momentum=1.5", r"protocol\.momentum=1\.5: expected 0 <= m < 1"),
        ("protocol.weight_decay=-1", r"protocol\.weight_decay=-1(\.0)?: expected at least 0"),
        ("protocol.lr_factor=0", r"protocol\.lr_factor=0(\.0)?: expected"),
        ("protocol.lr_milestones=[0.6,0.3]", r"lr_milestones=\[0\.6, 0\.3\]: expected asc"),
        ("protocol.lr_milestones=[30,60]", r"protocol\.lr_milestones=.*: expected ascending frac"),
        ("trainer.epochs=0", r"trainer\.epochs=0: expected null or at least 1"),
        ("trainer.max_steps=0", r"trainer\.max_steps=0: expected null or at least 1"),
        ("trainer.replicas_per_pass=0", r"trainer\.replicas_per_pass=0: expected null or at"),
        ("trainer.log_every=0", r"trainer\.log_every=0: expected at least 1"),
        ("trainer.eval_batch_size=0", r"trainer\.eval_batch_size=0: expected null or at least 1"),
        ("trainer.precision=fp8", r"trainer\.precision=fp8: expected one of fp32, tf32"),
        ("trainer.device=tpu", r"trainer\.device=tpu: expected one of auto, cpu"),
        ("calibration.samples=some", r"calibration\.samples=some: expected a number .*'all'"),
        ("calibration.samples=0", r"calibration\.samples=0: expected a number"),
        ("calibration.samples=true", r"calibration\.samples=True: expected a number"),
        ("calibration.estimator=mean", r"calibration\.estimator=mean: expected one of mean_of"),
        ("calibration.seed=-1", r"calibration\.seed=-1: expected"),
        ("seed=-1", r"seed=-1: expected a whole number of at least 0"),
        ("seed=99999999999999999999", r"seed=9{20}: expected"),
        # Values of the wrong type.
        ("batch.gpus=two", r"batch\.gpus: Value 'two'.*Integer"),
        ("trainer.epochs=1.5", r"trainer\.epochs: Value '1\.5'.*Integer"),
        ("protocol.base_lr=high", r"protocol\.base_lr: Value 'high'.*Float"),
        ("evaluate=maybe", r"evaluate: Value 'maybe'.*bool"),
        ("data.mean=white", r"data\.mean: .*not a ListConfig, list"),
        # Unknown and missing keys.
        ("+trainer.epoch=3", r"trainer\.epoch: Key 'epoch' not in 'TrainerConfig'"),
        ("+sed=3", r"sed: Key 'sed' not in 'ExperimentConfig'"),
        ("norm.name=???", r"norm\.name: .*mandatory"),
        ("~norm.target", r"norm\.target: .*mandatory"),
    ],
)  # fmt: skip
def test_an_error_names_the_key_the_value_and_what_was_expected(
    composed: Compose, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        composed(override)
    assert isinstance(caught.value, UserError)


def test_a_stored_config_has_the_same_errors(composed: Compose) -> None:
    with pytest.raises(ConfigError, match=r"norm: .*mandatory"):
        from_dict({})
    values = composed().to_dict()
    values["trainer"]["epochs"] = 0
    with pytest.raises(ConfigError, match=r"trainer\.epochs=0"):
        from_dict(values)


def test_the_local_processes_share_the_cores_among_their_workers(
    composed: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(32))
    for processes, workers in (("1", 31), ("2", 15), ("8", 3), ("32", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert composed().data.workers == workers
    monkeypatch.setenv("SN_IMAGENET_CORES", "4")
    assert composed().data.workers == 3
    assert composed("data.workers=5").data.workers == 5


def test_imagefolder_small_is_for_small_images(composed: Compose) -> None:
    config = composed("data=imagefolder_small", "data.train=a", "data.val=b")
    assert (config.data.source, config.data.image_size, config.data.resize_size) == (
        "imagefolder",
        32,
        32,
    )
    assert config.augment.name == "crop_flip"
