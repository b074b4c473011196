"""The whole config of one run, composed by Hydra or read from a file."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from glob import glob
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sn_imagenet.config.checks import expand_home, require_one_of, require_seed
from sn_imagenet.config.running import CalibrationConfig, CheckpointConfig, TrainerConfig
from sn_imagenet.config.sections import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    NormConfig,
    ProtocolConfig,
    SettingConfig,
)
from sn_imagenet.errors import ConfigError, closest_name

C = TypeVar("C")

CONFIGS = (Path(__file__).parents[1] / "configs").resolve()  # a link to configs/ in a checkout
# The task of a config that names none.
CLASSIFICATION = {
    "name": "classification",
    "target": "sn_imagenet.tasks.classification.Classification",
}
# Environment variable with the cores of each process, as the slots of a sweep set it.
CORES = "SN_IMAGENET_CORES"
TRACKERS = ("tensorboard", "trackio", "none")

# Keys that affect where, how fast and how safely a run executes, but not its results.
# fmt: off
NON_EXPERIMENT_KEYS = frozenset({
    "run_dir", "runs_dir", "evaluate", "tracker",
    "data.root", "data.train", "data.val", "data.workers",
    "data.train_annotations", "data.val_annotations",
    "norm.label", "norm.head.label",
    "model.fuse_relu", "trainer.device", "trainer.replicas_per_pass", "trainer.log_every",
    "trainer.eval_batch_size", "trainer.deterministic", "trainer.graph", "checkpoint.minutes",
    "calibration.every", "trainer.validate_every",
    "trainer.compile", "checkpoint.on_error",  # of runs by earlier versions
    "task.style", "task.features",  # files, which the fingerprint of the data covers
})
# fmt: on


def _spare_cores() -> int:
    """The cores of this process but one, at least 1."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share = os.environ.get(CORES) or len(os.sched_getaffinity(0)) // processes
    return max(1, int(share) - 1)


def _join(separator: str, name: str, other: Any) -> str:
    """``name``, or ``name`` and the name of ``other``. Classification, the default, has none."""
    other = other if isinstance(other, str | None) else other["name"]
    return name if other in (None, CLASSIFICATION["name"]) else f"{name}{separator}{other}"


OmegaConf.register_new_resolver("spare_cores", _spare_cores, replace=True)
OmegaConf.register_new_resolver("join", _join, replace=True)
OmegaConf.register_new_resolver("stem", lambda path: path and Path(path).stem, replace=True)
OmegaConf.register_new_resolver(
    "choose", lambda condition, yes, no: yes if condition else no, replace=True
)


@dataclass
class ExperimentConfig:
    """One run of ``train.py``.

    ``init``: run directory or export with the initial weights; the classifier is new if the classes
    differ. ``imported``: the source of weights that were not trained here.
    """

    norm: NormConfig
    batch: SettingConfig
    augment: AugmentConfig
    data: DataConfig
    model: ModelConfig
    protocol: ProtocolConfig
    trainer: TrainerConfig
    calibration: CalibrationConfig
    checkpoint: CheckpointConfig
    seed: int
    runs_dir: str
    run_dir: str
    evaluate: bool
    tracker: str
    init: str | None = None
    imported: str | None = None
    task: dict[str, Any] = field(default_factory=lambda: dict(CLASSIFICATION))

    def __post_init__(self) -> None:
        for key in ("runs_dir", "run_dir", "init"):
            setattr(self, key, expand_home(getattr(self, key)))
        require_seed("seed", self.seed)
        require_one_of("tracker", self.tracker, TRACKERS)
        if self.uses_single_sample:
            self.norm.apply_single_sample()
            if self.norm.head is not None:
                head = NormConfig(**self.norm.head)
                head.apply_single_sample()
                self.norm.head = asdict(head)
        if self.norm.head is not None and self.norm.test_statistics == "sample":
            # The heads alone store statistics.
            self.norm.test_statistics = self.norm.head["test_statistics"]

    @property
    def uses_single_sample(self) -> bool:
        """Whether ``norm.single_sample`` applies: a replica has one sample, and a sample is one row
        of an activation."""
        return self.batch.samples_per_gpu == 1 and bool(self.task.get("single_sample", True))

    @property
    def norm_label(self) -> str:
        """The method in tables and paths: ``sn``; ``frozen_bn+sn`` with another for the heads."""
        return _join("+", self.norm.name, self.norm.head)

    @property
    def initial_lr(self) -> float:
        """base_lr * total batch / reference batch: 0.1 at (8,32), 0.003125 at (8,1)."""
        return self.protocol.base_lr * self.batch.total / self.protocol.lr_reference_batch

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as written to ``config.yaml`` and ``result.json``."""
        container = OmegaConf.to_container(OmegaConf.create(asdict(self)))
        assert isinstance(container, dict)
        values = {str(key): value for key, value in container.items()}
        # Runs of classification, and configs without these options, look as they always did.
        if values["task"] == CLASSIFICATION:
            del values["task"]
        optional = (
            ("norm", "head"),
            ("norm", "own_parameters"),
            ("trainer", "validate_every"),
            ("augment", "operations"),
            ("data", "train_annotations"),
            ("data", "val_annotations"),
            ("protocol", "detection"),
        )
        for section, key in optional:
            if not values[section][key]:
                del values[section][key]
        head = values["norm"].get("head")
        if head and not head["own_parameters"]:
            del head["own_parameters"]
        return values


def from_hydra(composed: DictConfig) -> ExperimentConfig:
    """Validate a composed config.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or range.
    """
    if OmegaConf.select(composed, "sweep.dry_run"):
        raise ConfigError("sweep.dry_run=true: works only with -m hydra/launcher=local")
    task = OmegaConf.select(composed, "task")
    missing = [key for key in CLASSIFICATION if task is not None and task.get(key) is None]
    if missing:
        raise ConfigError(f"task.{missing[0]} is missing: a task's config has a name and a target")
    head = OmegaConf.select(composed, "norm.head")
    if isinstance(head, str):
        composed = composed.copy()
        found = _norm_by_name(head)
        own = OmegaConf.masked_copy(composed.norm, [k for k in composed.norm if k != "head"])
        # Frozen batch norm's heads have none by default.
        named_twice = own == found and composed.norm.name != "frozen_bn"
        OmegaConf.update(composed, "norm.head", None if named_twice else found, force_add=True)
    if OmegaConf.select(composed, "init_from") is not None:
        composed = composed.copy()
        composed.init = _initial_run(composed)
    # How a sweep executes its runs, and how init was found, is not part of their configs.
    keys = [str(key) for key in composed if key not in ("sweep", "init_from")]
    return structured(ExperimentConfig, OmegaConf.masked_copy(composed, keys))


def structured(schema: type[C], values: DictConfig | dict[str, Any], prefix: str = "") -> C:
    """``values`` as an object of the dataclass ``schema``. ``prefix``: of its keys, for errors.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or range.
    """
    try:
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise ConfigError(f"{prefix}{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, schema)
    return config


class InitialRunError(ConfigError):
    """The run that ``init_from`` describes does not exist."""


def _initial_run(composed: DictConfig) -> str:
    """The trained run below ``init_from`` (a folder, or a glob of folders) with the config's
    backbone, method and seed; for frozen batch norm, one with batch norm.

    Raises:
        InitialRunError: there is none, or more than one.
    """
    folder, seed = str(composed.init_from), composed.seed
    method = {"frozen_bn": "bn"}.get(composed.norm.name, composed.norm.name)
    backbone = OmegaConf.select(composed, "model.args.backbone") or composed.model.name
    found = []
    for file in map(Path, sorted(glob(f"{folder}/**/seed{seed}/config.yaml", recursive=True))):
        try:
            values = OmegaConf.load(file)
        except (OSError, ValueError, YAMLError):
            continue  # a damaged config
        matches = OmegaConf.select(values, "norm.name") == method and (
            OmegaConf.select(values, "model.name") == backbone
        )
        if matches and (file.parent / "final.pt").exists():
            found.append(str(file.parent))
    if len(found) != 1:
        runs = f"{len(found)} runs" if found else "no finished run"
        raise InitialRunError(
            f"init_from={folder}: {runs} of model={backbone} norm={method} seed={seed} there"
            + (f" ({', '.join(found)}); use a folder with one of them" if found else "")
        )
    return found[0]


def _norm_by_name(name: str) -> DictConfig:
    """The config of a method, looked up and composed as ``norm=`` is.

    Raises:
        ConfigError: there is no such config, or it cannot be composed.
    """
    loader = GlobalHydra.instance().config_loader()
    folders = HydraConfig.get().searchpath if HydraConfig.initialized() else []
    overrides = [f"hydra.searchpath={list(folders)}"] if folders else []
    try:
        composed = loader.load_configuration(None, [f"+norm={name}", *overrides], RunMode.RUN)
    except HydraException as error:
        if getattr(error, "missing_cfg_file", None) != f"norm/{name}":
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ConfigError(f"norm.head={name}: {reason}") from error
        known = sorted(loader.get_group_options("norm"))
        match = closest_name(name, known)
        guess = f"did you mean norm.head={match}? " if match else ""
        raise ConfigError(
            f"norm.head={name}: unknown choice; {guess}expected one of {', '.join(known)}"
        ) from error
    return composed.norm


def from_dict(values: dict[str, Any]) -> ExperimentConfig:
    """The inverse of :meth:`ExperimentConfig.to_dict`; errors as :func:`from_hydra`."""
    # Configs of earlier versions may lack the tracker and the graph, and have what is removed.
    config = OmegaConf.create({"tracker": "tensorboard", **values})
    for section, removed in (("trainer", "compile"), ("checkpoint", "on_error")):
        if isinstance(config.get(section), DictConfig):
            config[section].pop(removed, None)
    if isinstance(config.get("trainer"), DictConfig):
        config.trainer.setdefault("graph", False)
    return from_hydra(config)
