"""Metrics of a training: rows in ``metrics.jsonl`` and scalars in a tracker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from sn_imagenet.runs import MetricsFile, RunDirectory, decompress_rows
from sn_imagenet.runs.files import file_error
from sn_imagenet.training.trackers import Tracker


def unpack_rows(state: torch.Tensor) -> bytes:
    """The inverse of :meth:`MetricsLog.state`.

    Raises:
        ValueError: ``state`` does not hold packed rows.
    """
    return decompress_rows(state.numpy().tobytes())


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and mirrors their numbers to a tracker.

    Args:
        directory: of the run.
        tracker: creates the tracker.
        rows: rows of earlier starts, which are kept.

    Raises:
        RunError: the files cannot be written (full or read-only disk).
    """

    def __init__(
        self, directory: RunDirectory, tracker: Callable[[], Tracker], rows: bytes = b""
    ) -> None:
        self._path = directory.metrics
        self._file = MetricsFile(self._path, rows)
        self._tracker = Tracker()
        with self.tracker():
            self._tracker = tracker()

    @property
    def damage(self) -> str:
        """What was wrong with the ``metrics.jsonl`` of earlier starts; empty if it was intact."""
        return self._file.damage

    def state(self) -> torch.Tensor:
        """All rows so far, packed (uint8 [bytes])."""
        return torch.frombuffer(bytearray(self._file.compressed_rows()), dtype=torch.uint8)

    def write(self, row: dict[str, Any], scalars: dict[str, float], step: int) -> None:
        """Append ``row``, and log ``scalars`` at ``step`` to the tracker.

        Raises:
            RunError: the disk cannot be written.
        """
        self._file.write(row)
        with self.tracker() as tracker:
            tracker.scalars(scalars, step)

    @contextmanager
    def tracker(self) -> Iterator[Tracker]:
        """The tracker, for what is no row; errors as :meth:`write`."""
        # Its thread may fail at any time on a full disk; the error names the metrics file.
        try:
            yield self._tracker
        except OSError as error:
            raise file_error("write", self._path, error) from error

    def sync(self) -> None:
        """Flush the rows to the disk; errors as :meth:`MetricsFile.sync`."""
        self._file.sync()

    def close(self) -> None:
        """Close both. Errors are ignored: they must not hide the error that ended the run."""
        self._file.close()
        with suppress(OSError):
            self._tracker.close()
