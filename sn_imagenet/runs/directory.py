"""The directory of a run. It belongs to one experiment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sn_imagenet.config import NON_EXPERIMENT_KEYS, ExperimentConfig
from sn_imagenet.runs import files
from sn_imagenet.runs.files import RunError, advice
from sn_imagenet.runs.reading import read_json, read_yaml

RESULT_VERSION = 2
# Some of the sections of every config; a file that was cut off lacks the last.
_SECTIONS = {"norm", "batch", "data", "model", "seed", "evaluate"}


class RunDirectory:
    """A run's directory and the paths of its files; docs/results.md lists them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / files.CONFIG
        self.lock = path / "lock.json"
        self.metrics = path / files.METRICS
        self.newest = path / files.NEWEST
        self.last = path / "last.pt"
        self.previous = path / "previous.pt"
        self.final = path / files.FINAL
        self.batch_average = path / files.BATCH_AVERAGE
        self.result = path / files.RESULT
        self.tensorboard = path / "tensorboard"
        self.tracked_as = path / "tracked_as.txt"
        self.log = path / "log.txt"  # its output, if a sweep started it

    def check(self, config: ExperimentConfig) -> None:
        """Check that the directory is free or holds this experiment.

        Raises:
            RunError: it holds a run of another experiment (the message lists the differences), the
                folder named after the method holds runs with another ``norm.target``, or the
                config has a value that cannot be encoded as UTF-8.
        """
        _require_utf8(config)
        self._require_one_target(config)
        has_config = self.config.exists()
        if has_config:
            self.require_same_experiment(self.read_config(), config)
        try:
            result = self.read_result()
        except RunError:
            if has_config:
                return  # reported when the result is needed
            raise
        if result is not None and isinstance(result.get("config"), dict):
            if has_config:
                self.require_own(self.result, result["config"], config.to_dict())
            else:
                self.require_same_experiment(result["config"], config)

    def _require_one_target(self, config: ExperimentConfig) -> None:
        """Require one class per method name, because tables group runs by that name."""
        method_folder = self.path.parent.parent
        if method_folder.name != config.norm_label:
            return  # the user chose another layout with run_dir=
        ours = _norm_targets(config.to_dict()["norm"])
        for path in sorted(method_folder.glob(f"*/seed*/{files.CONFIG}")):
            try:
                theirs = _norm_targets(RunDirectory(path.parent).read_config()["norm"])
            except (RunError, LookupError, TypeError, AttributeError):
                continue  # reported when that run itself is read
            for (part, name), target in ours.items():
                other = theirs.get((part, name), target)
                if other != target:
                    raise RunError(
                        f"{part}.target={target}: {path.parent} is a run of {part}.name={name} "
                        f"with {part}.target={other}; give this method its own {part}.name="
                    )
            return

    def require_own(self, file: Path, its: Any, own: dict[str, Any]) -> None:
        """Require that ``file`` of this directory, with the config ``its``, is of this run.

        Raises:
            RunError: it was copied from a run with another config than ``own``.
        """
        differences = config_differences(its if isinstance(its, dict) else {}, own)
        if differences:
            raise RunError(
                f"{file} is of another run ({'; '.join(differences[:3])}); {advice(file)}"
            )

    def require_same_experiment(self, before: dict[str, Any], config: ExperimentConfig) -> None:
        """Check that two configs describe the same experiment.

        Args:
            before: a config, or the part of one that :func:`experiment_values` returned.

        Raises:
            RunError: they differ; the message lists the differences.
        """
        differences = config_differences(before, config.to_dict())
        if differences:
            raise RunError(
                f"{self.path} holds a run of another config:\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nStart this run with another run_dir= (or runs_dir=, seed=), or remove that "
                "directory."
            )

    def read_config(self) -> dict[str, Any]:
        """The config that the run was started with.

        Raises:
            RunError: the file is missing or cannot be read.
        """
        try:
            loaded = read_yaml(self.config)
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path} is not a run directory: it has no {self.config.name}"
            ) from error
        except (OSError, RunError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"{self.config} cannot be read: {reason}; {advice(self.config)}"
            ) from error
        if not isinstance(loaded, dict) or _SECTIONS - loaded.keys():
            raise RunError(f"{self.config} is damaged or not a config; {advice(self.config)}")
        return {str(key): value for key, value in loaded.items()}

    def read_result(self) -> dict[str, Any] | None:
        """The run's result, or None while it has none.

        Raises:
            RunError: the file is not readable JSON, or has another version.
        """
        try:
            result = read_json(self.result)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, RunError) as error:
            raise self._invalid_result(f"cannot be read: {error}") from error
        version = result.get("version") if isinstance(result, dict) else None
        if version != RESULT_VERSION:
            raise self._invalid_result(
                f"is a result of version {version}: expected {RESULT_VERSION}"
            )
        return dict(result)

    def _invalid_result(self, problem: str) -> RunError:
        return RunError(f"{self.result} {problem}; {advice(self.result)}")


RUN_FILES = frozenset(path.name for path in vars(RunDirectory(Path())).values())
RUN_FILES |= {files.TOP1_TABLE, files.SCORE_TABLE}


def _norm_targets(norm: dict[str, Any]) -> dict[tuple[str, str], str]:
    """(``norm`` or ``norm.head``, name of the method) -> its class."""
    parts = {"norm": norm, "norm.head": norm.get("head")}
    return {(part, values["name"]): values["target"] for part, values in parts.items() if values}


def _require_utf8(config: ExperimentConfig) -> None:
    for key, value in flatten_config(config.to_dict()).items():
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise RunError(
                f"{key}={value}: cannot be encoded where Python reads names as "
                f"{sys.getfilesystemencoding()}; choose another, or set PYTHONUTF8=1 if it is UTF-8"
            ) from error


def config_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``key: before -> now`` for each value that differs between two experiments."""
    old, new = experiment_values(before), experiment_values(now)
    keys = sorted(set(old) | set(new))
    return [
        f"{key}: {old.get(key)} (there) -> {new.get(key)} (now)"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def experiment_values(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of a config, without the keys that say where and how fast to run."""
    flat = flatten_config(config)
    return {key: value for key, value in flat.items() if key not in NON_EXPERIMENT_KEYS}


def flatten_config(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested dicts. An empty dict is kept as a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten_config(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
