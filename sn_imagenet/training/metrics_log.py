"""What a run measures as it goes: ``metrics.jsonl`` to keep, TensorBoard to watch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from sn_imagenet.runs import MetricsFile, RunDirectory, unpacked
from sn_imagenet.runs.files import cannot


def rows_of(state: torch.Tensor) -> bytes:
    """The inverse of :meth:`MetricsLog.state`.

    Raises:
        ValueError: it is something else.
    """
    return unpacked(state.numpy().tobytes())


class MetricsLog:
    """Appends rows to the run's ``metrics.jsonl`` and mirrors their numbers to TensorBoard.

    Args:
        directory: the run's.
        rows: of earlier starts, which are kept.
        step: the optimiser step from which the run goes on.

    Raises:
        RunError: the files cannot be written (a full or read-only disk).
    """

    def __init__(self, directory: RunDirectory, rows: bytes = b"", step: int = 0) -> None:
        self._path = directory.metrics
        self._file = MetricsFile(self._path, rows)
        with self._refusal_told():
            self._board = SummaryWriter(str(directory.tensorboard), purge_step=step + 1)

    @property
    def mended(self) -> str:
        """What was wrong with the ``metrics.jsonl`` of earlier starts; empty if nothing was."""
        return self._file.mended

    def state(self) -> torch.Tensor:
        """All rows so far, packed (uint8 [bytes])."""
        return torch.frombuffer(bytearray(self._file.packed()), dtype=torch.uint8)

    def write(self, row: dict[str, Any], scalars: dict[str, float], step: int) -> None:
        """Append ``row``, and show ``scalars`` in TensorBoard at ``step``.

        Raises:
            RunError: the disk refuses.
        """
        self._file.write(row)
        with self._refusal_told():
            for tag, value in scalars.items():
                self._board.add_scalar(tag, value, step)

    def sync(self) -> None:
        """Have the rows on the disk; errors as :meth:`MetricsFile.sync`."""
        self._file.sync()

    def close(self) -> None:
        """Close both; an error tells nothing new and must not hide the one that ended the run."""
        self._file.close()
        with suppress(OSError):
            self._board.close()

    @contextmanager
    def _refusal_told(self) -> Iterator[None]:
        # TensorBoard's thread meets the full disk when it likes: what is lost are the metrics.
        try:
            yield
        except OSError as error:
            raise cannot("write", self._path, error) from error
