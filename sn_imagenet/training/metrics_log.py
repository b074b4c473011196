"""What a run measures as it goes: ``metrics.jsonl`` to keep, a tracker to watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from matplotlib.figure import Figure

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.runs import MetricsFile, RunDirectory, decompress_rows
from sn_imagenet.runs.files import file_error
from sn_imagenet.training.trackers import Tracker


def unpack_rows(state: torch.Tensor) -> bytes:
    """The inverse of :meth:`MetricsLog.state`.

    Raises:
        ValueError: it is something else.
    """
    return decompress_rows(state.numpy().tobytes())


class MetricsLog:
    """Appends rows to the run's ``metrics.jsonl`` and mirrors their numbers to a tracker.

    Args:
        directory: the run's.
        tracker: makes the live view.
        rows: of earlier starts, which are kept.

    Raises:
        RunError: the files cannot be written (a full or read-only disk).
    """

    def __init__(
        self, directory: RunDirectory, tracker: Callable[[], Tracker], rows: bytes = b""
    ) -> None:
        self._path = directory.metrics
        self._file = MetricsFile(self._path, rows)
        with self._refusal_told():
            self._tracker = tracker()

    @property
    def mended(self) -> str:
        """What was wrong with the ``metrics.jsonl`` of earlier starts; empty if nothing was."""
        return self._file.damage

    def state(self) -> torch.Tensor:
        """All rows so far, packed (uint8 [bytes])."""
        return torch.frombuffer(bytearray(self._file.compressed_rows()), dtype=torch.uint8)

    def write(self, row: dict[str, Any], scalars: dict[str, float], step: int) -> None:
        """Append ``row``, and show ``scalars`` at ``step``.

        Raises:
            RunError: the disk refuses.
        """
        self._file.write(row)
        with self._refusal_told():
            self._tracker.scalars(scalars, step)

    def describe(self, config: ExperimentConfig, departures: Sequence[Mapping[str, str]]) -> None:
        """Show what the run is; errors as :meth:`write`."""
        with self._refusal_told():
            self._tracker.describe(config, departures)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Show ``figure``; errors as :meth:`write`."""
        with self._refusal_told():
            self._tracker.figure(tag, figure, step)

    def finish(self, config: ExperimentConfig, top1: float) -> None:
        """Show what the run came to; errors as :meth:`write`."""
        with self._refusal_told():
            self._tracker.finish(config, top1)

    def sync(self) -> None:
        """Have the rows on the disk; errors as :meth:`MetricsFile.sync`."""
        self._file.sync()

    def close(self) -> None:
        """Close both; an error tells nothing new and must not hide the one that ended the run."""
        self._file.close()
        with suppress(OSError):
            self._tracker.close()

    @contextmanager
    def _refusal_told(self) -> Iterator[None]:
        # A tracker's thread meets the full disk when it likes: what is lost are the metrics.
        try:
            yield
        except OSError as error:
            raise file_error("write", self._path, error) from error
