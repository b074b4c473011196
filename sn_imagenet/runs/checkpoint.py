"""Checkpoints: plain tensors and dicts, whole or not there, the last two kept."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.runs.directory import RunDirectory
from sn_imagenet.runs.files import RunError, file_error, overwrite, write_atomically

VERSION = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, dicts, lists, numbers, strings), readable with weights_only=True.

    Raises:
        RunError: it cannot be written; what was at ``path`` still is.
    """
    write_atomically(path, _packed(state))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; code inside it is never run.

    Raises:
        RunError: it is missing, truncated, not a checkpoint, or of another version.
    """
    try:
        _check_every_byte(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"there is no checkpoint {path}") from error
    except Exception as error:  # torch raises whatever its unpickler or zip reader found
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"{path} is not a readable checkpoint ({reason}): it is damaged or not a checkpoint; "
            "remove it to continue from an earlier one or from the start"
        ) from error
    version = state.get("version") if isinstance(state, dict) else None
    if not isinstance(version, int) or version != VERSION:
        raise RunError(f"{path} is a checkpoint of version {version}: expected {VERSION}")
    assert isinstance(state, dict)
    return state


def _packed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    return buffer.getvalue()


def _check_every_byte(path: Path) -> None:
    """torch's reader does not compare the checksums that its writer left in the archive."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def save_last(directory: RunDirectory, state: dict[str, Any]) -> None:
    """Make ``state`` the run's newest checkpoint and keep the one before it.

    Raises:
        LockLostError: another process has taken the directory over.
        RunError: it cannot be written; the older ones are as they were.
    """
    # Whole on the disk before an older one is given up: that one may be the only one readable.
    # Always under the same name, so that runs which are killed leave one behind and not many.
    packed = _packed(state)
    directory.raise_if_lock_lost()
    overwrite(directory.newest, packed)
    directory.raise_if_lock_lost()  # what was written so far is nobody's
    try:
        if directory.last.exists():
            os.replace(directory.last, directory.previous)
        os.replace(directory.newest, directory.last)
    except OSError as error:
        raise file_error("write", directory.last, error) from error


def load_last(
    directory: RunDirectory, check: Callable[[Path, dict[str, Any]], None] = lambda *_: None
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest usable checkpoint (None if the run has none), and a warning for each that is not.

    Args:
        check: raises RunError for the path and the state of one that cannot be gone on from.

    Raises:
        RunError: there are checkpoints and none is usable.
    """
    warnings: list[str] = []
    for path in (directory.last, directory.previous):
        if not path.exists():
            continue
        try:
            state = load(path)
            check(path, state)
            return state, warnings
        except RunError as error:
            warnings.append(str(error))
    if warnings:
        raise RunError(
            "no checkpoint of this run is readable:\n"
            + "\n".join(f"  {warning}" for warning in warnings)
            + "\nRemove them to start it from the beginning."
        )
    return None, []


def require_same_experiment(directory: RunDirectory, config: ExperimentConfig) -> None:
    """Whether the checkpoints of a directory that has lost its config are of this experiment.

    Raises:
        RunError: they are another's; the difference is shown.
    """
    if directory.config.exists():
        return

    def check(path: Path, state: dict[str, Any]) -> None:
        if not isinstance(state.get("config"), dict):
            raise RunError(f"{path} does not say of which experiment it is")

    state, _ = load_last(directory, check)
    if state is not None:
        directory.require_same_experiment(state["config"], config)


def save_batch_average(
    directory: RunDirectory,
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    evaluation: dict[str, Any],
) -> None:
    """Keep the statistics of the batch average that counts, so that the trained network can be used
    without its data.

    Args:
        statistics: layer name -> mean and biased variance, each [C] float64.
        evaluation: the entry of ``result.json`` that was made with them.

    Raises:
        LockLostError: another process has taken the directory over.
        RunError: it cannot be written; what was there still is.
    """
    directory.raise_if_lock_lost()
    tables = {n: {"mean": m.cpu(), "var": v.cpu()} for n, (m, v) in statistics.items()}
    save(directory.batch_average, {"statistics": tables, "evaluation": evaluation})


def load_batch_average(directory: RunDirectory) -> dict[str, tuple[Tensor, Tensor]]:
    """The statistics that :func:`save_batch_average` kept.

    Raises:
        RunError: there are none, or the file is damaged.
    """
    if not directory.batch_average.exists():
        raise RunError(
            f"{directory.path} has no batch average: no evaluation left its "
            f"{directory.batch_average.name}; python evaluate.py run={directory.path} does"
        )
    try:
        tables = load(directory.batch_average)["statistics"]
        return {name: (table["mean"], table["var"]) for name, table in tables.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{directory.batch_average} is damaged ({error!r}): remove it; "
            f"python evaluate.py run={directory.path} makes it anew"
        ) from error
