"""What a run measures as it goes: ``metrics.jsonl`` to keep, TensorBoard to watch."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from sn_imagenet.runs.directory import RunDirectory
from sn_imagenet.runs.files import cannot


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and mirrors their numbers to TensorBoard.

    Args:
        directory: the run's.
        keep_bytes: what is kept of an earlier start's rows; those after the checkpoint are written
            again by the resumed run.
        step: the optimiser step from which the run goes on.

    Raises:
        RunError: the file cannot be written (a full or read-only disk).
    """

    def __init__(self, directory: RunDirectory, keep_bytes: int = 0, step: int = 0) -> None:
        self._path = directory.metrics
        try:
            self._file = open(self._path, "ab")  # noqa: SIM115 - closed by close()
            self._file.truncate(_whole_lines(self._path, keep_bytes))
            self._board = SummaryWriter(str(directory.path / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise cannot("write", self._path, error) from error

    @property
    def bytes_written(self) -> int:
        """The size of the file, to be kept with a checkpoint."""
        return self._file.seek(0, 2)

    def write(self, row: dict[str, Any], scalars: dict[str, float], step: int) -> None:
        """Append ``row``, and show ``scalars`` in TensorBoard at ``step``."""
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            for tag, value in scalars.items():
                self._board.add_scalar(tag, value, step)
        except OSError as error:
            raise cannot("write", self._path, error) from error

    def sync(self) -> None:
        """Have the rows on the disk, so that a checkpoint never knows of more than there are.

        Raises:
            RunError: the disk refuses.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot("write", self._path, error) from error

    def close(self) -> None:
        """Close both. Rows were flushed as they were written, so that an error (the disk is still
        full) tells nothing new and must not hide the one that ended the run.
        """
        for file in (self._file, self._board):
            with suppress(OSError):
                file.close()


def _whole_lines(path: Path, limit: int) -> int:
    """How many of a file's first ``limit`` bytes are whole lines; it may have lost its end."""
    return path.read_bytes()[:limit].rfind(b"\n") + 1
