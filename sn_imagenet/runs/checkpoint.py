"""Checkpoints of plain tensors and dicts, written atomically. The last two are kept."""

from __future__ import annotations

import concurrent.futures
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sn_imagenet.overrides import quoted
from sn_imagenet.runs.directory import RunDirectory
from sn_imagenet.runs.files import RunError, advice, disk_errors, printable, write_atomically
from sn_imagenet.runs.reading import open_to_read

VERSION = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, dicts, lists, numbers, strings), readable with weights_only=True.

    Raises:
        RunError: the file cannot be written; an existing file at ``path`` is unchanged.
    """
    write_atomically(path, _serialize(state))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; code inside it is never run.

    Raises:
        RunError: the file is missing, truncated, not a checkpoint, or of another version.
    """
    try:
        with open_to_read(path) as file:
            _verify_checksums(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"there is no checkpoint {path}") from error
    except Exception as error:  # torch's unpickler and zip reader raise errors of any type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"{path} is not a readable checkpoint ({reason}): it is damaged or not a checkpoint; "
            f"{advice(path)}"
        ) from error
    version = state.get("version") if isinstance(state, dict) else None
    if not isinstance(version, int) or version != VERSION:
        raise RunError(f"{path} is a checkpoint of version {version}: expected {VERSION}")
    assert isinstance(state, dict)
    return state


def _serialize(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    return buffer.getvalue()


def _verify_checksums(file: IO[bytes]) -> None:
    """Compare the checksums in the zip archive, which torch writes but does not check."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


class CheckpointSaver:
    """Writes one checkpoint of a run at a time and keeps the previous one. Training waits only for
    the copy in memory.

    Args:
        before_write: called in the writing thread before each checkpoint, to flush what must be on
            the disk by then. May raise RunError.
    """

    def __init__(self, directory: RunDirectory, before_write: Callable[[], None]) -> None:
        self._directory = directory
        self._before_write = before_write
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Copy ``state`` and write it after the previous one. :meth:`wait` raises errors."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending])
        if not self.failed:
            self._pending = self._thread.submit(self._write, _serialize(state))

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; does not wait for a write in progress."""
        write = self._pending
        return write is not None and write.done() and write.exception() is not None

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            RunError: a checkpoint could not be written; the older ones are unchanged.
        """
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """Finish the write in progress. Does not raise errors; :meth:`wait` does."""
        self._thread.shutdown()

    def _write(self, content: bytes) -> None:
        self._before_write()
        directory = self._directory
        # Write all of it to the disk before replacing an older one, which may be the only readable
        # one.
        write_atomically(directory.newest, content)
        with disk_errors(directory.last):
            if directory.last.exists():
                os.replace(directory.last, directory.previous)
            os.replace(directory.newest, directory.last)


def load_last(
    directory: RunDirectory, check: Callable[[Path, dict[str, Any]], None] = lambda *_: None
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest usable checkpoint, None if the run has none, and a warning for each unusable one.

    Args:
        check: called with path and state; raises RunError if the run cannot resume from it.

    Raises:
        RunError: there are checkpoints, but none is usable.
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


def load_final(directory: RunDirectory, config: dict[str, Any]) -> dict[str, Any]:
    """The content of ``final.pt`` of the run with ``config``, at least ``model`` and ``config``.

    Raises:
        RunError: training has not finished, or the file is damaged or of another run.
    """
    if not directory.final.exists():
        raise RunError(
            f"{directory.path} has no {directory.final.name}: training has not finished; run the "
            "command that started it again to resume it"
        )
    state = load(directory.final)
    for key in ("model", "config"):
        if not isinstance(state.get(key), dict):
            raise RunError(
                f"{directory.final} is not a checkpoint of this run: no entry '{key}'; "
                f"{advice(directory.final)}"
            )
    directory.require_own(directory.final, state["config"], config)
    return state


def save_batch_average(
    directory: RunDirectory,
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    evaluation: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """Save the batch average of the counted evaluation, for use of the network without its data.

    Args:
        statistics: layer name -> mean and biased variance, each [C] float64.
        evaluation: the entry of ``result.json`` that was evaluated with them.
        config: the run's.

    Raises:
        RunError: the file cannot be written; an existing file is unchanged.
    """
    tables = {n: {"mean": m.cpu(), "var": v.cpu()} for n, (m, v) in statistics.items()}
    state = {"statistics": tables, "evaluation": evaluation, "config": config}
    save(directory.batch_average, state)


def _require_own_evaluation(directory: RunDirectory, evaluation: dict[str, Any]) -> None:
    """Require that the run's result has the evaluation whose statistics were saved."""
    result = directory.read_result() or {"evaluations": [evaluation]}

    def numbers(record: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in printable(record).items() if k not in ("at", "by", "provenance")}

    if numbers(evaluation) not in map(numbers, result["evaluations"]):
        raise RunError(
            f"{directory.batch_average} is of another training than {directory.result}; "
            f"{advice(directory.batch_average)}"
        )


def load_batch_average(directory: RunDirectory) -> dict[str, tuple[Tensor, Tensor]]:
    """Load the statistics that :func:`save_batch_average` saved.

    Raises:
        RunError: the file is missing or damaged.
    """
    if not directory.batch_average.exists():
        raise RunError(
            f"{directory.path} has no batch average ({directory.batch_average.name}); "
            f"python evaluate.py {quoted('run', str(directory.path))} computes it"
        )
    try:
        state = load(directory.batch_average)
        tables = state["statistics"]
        if "config" in state:  # older files have none
            directory.require_own(directory.batch_average, state["config"], directory.read_config())
            _require_own_evaluation(directory, state["evaluation"])
        return {name: (table["mean"], table["var"]) for name, table in tables.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{directory.batch_average} is damaged ({error!r}): {advice(directory.batch_average)}"
        ) from error
