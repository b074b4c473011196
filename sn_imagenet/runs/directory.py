"""The directory of a run: named by its config, held by one process at a time.

::

    config.yaml       the resolved config, written when the run starts
    lock.json         host and pid of the process that trains, while it does
    metrics.jsonl     one line per logged step and per epoch
    last.pt           the newest checkpoint; previous.pt the one before
    final.pt          the trained network
    result.json       what the run came to
    top1.md, *.png    what it evaluated, and for SN the importance weights
    tensorboard/      a live view, from which nothing is made
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sn_imagenet.config import NOT_THE_EXPERIMENT, ExperimentConfig
from sn_imagenet.runs.files import RunError, cannot, write_atomically, write_json
from sn_imagenet.runs.lock import release, take


@dataclass(frozen=True)
class RunDirectory:
    """A run's directory and the files in it."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def lock(self) -> Path:
        return self.path / "lock.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def previous(self) -> Path:
        return self.path / "previous.pt"

    @property
    def final(self) -> Path:
        return self.path / "final.pt"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def check(self, config: ExperimentConfig) -> None:
        """Whether the directory is free or holds this very experiment.

        Raises:
            RunError: another experiment's run lies there; the difference is shown.
        """
        if not self.config.exists():
            return
        differences = config_differences(self.read_config(), config.to_dict())
        if differences:
            raise RunError(
                f"{self.path} holds a run of another config:\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nStart this one with another run_dir= (or runs_dir=, seed=), or remove that "
                "directory."
            )

    def claim(self, config: ExperimentConfig) -> None:
        """Make the directory this experiment's, and this process the one that works in it.

        Raises:
            RunError: another process works there, another experiment's run lies there, or nothing
                can be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot("write", self.path, error) from error
        take(self.lock)
        try:
            # Checked again: another experiment may have come and gone since it was.
            self.check(config)
            if not self.config.exists():
                yaml = OmegaConf.to_yaml(OmegaConf.create(config.to_dict()))
                write_atomically(self.config, yaml.encode())
        except RunError:
            self.release()
            raise

    def release(self) -> None:
        """Let another process work here."""
        release(self.lock)

    def read_config(self) -> dict[str, Any]:
        """The config that the run was started with.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        try:
            loaded = OmegaConf.to_container(OmegaConf.load(self.config))
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path} is not a run directory: it has no {self.config.name}"
            ) from error
        except Exception as error:  # whatever YAML finds wrong
            raise RunError(
                f"{self.config} cannot be read: {error}; restore it, or remove {self.path} and "
                "start the run anew"
            ) from error
        if not isinstance(loaded, dict):
            raise RunError(f"{self.config} is not a config; remove {self.path} and start anew")
        return {str(key): value for key, value in loaded.items()}

    def read_result(self) -> dict[str, Any] | None:
        """The run's result, or None while it has none.

        Raises:
            RunError: the file cannot be read as JSON.
        """
        try:
            result: dict[str, Any] = json.loads(self.result.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.result} cannot be read: {error}; remove it and start the run again, "
                "which evaluates it anew"
            ) from error
        return result

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``.

        Raises:
            RunError: it cannot be written.
        """
        write_json(self.result, result)


def config_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``key: before -> now`` for each value in which two experiments differ."""
    old, new = _flatten(before), _flatten(now)
    keys = sorted(set(old) | set(new))
    return [
        f"{key}: {old.get(key)} (there) -> {new.get(key)} (now)"
        for key in keys
        if old.get(key) != new.get(key) and key not in NOT_THE_EXPERIMENT
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
