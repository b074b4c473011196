"""Checkpoints written beside the training: a snapshot now, the disk in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from sn_imagenet.runs import checkpoint
from sn_imagenet.runs.directory import RunDirectory
from sn_imagenet.runs.files import RunError
from sn_imagenet.runs.lock import RunInUseError


class CheckpointSaver:
    """Writes one checkpoint at a time, in order; the training waits only for the copy in memory.

    Args:
        before: called in the writing thread before each checkpoint is written: what must be on the
            disk by then. May raise RunError.
        on_error: ``stop`` raises an error at the next :meth:`check`, ``continue`` tells it (but for
            a directory that another process has taken over, which stops in any case).
        tell: says one line.
    """

    def __init__(
        self,
        directory: RunDirectory,
        before: Callable[[], None],
        on_error: str,
        tell: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._before = before
        self._on_error = on_error
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._error: RunError | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Begin to write ``state`` as it is now, after the one before it is written. An error is
        left for :meth:`check`.
        """
        self._join()
        if self.failed:
            return
        snapshot = _copied(state)
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether :meth:`check` would raise."""
        stops = self._on_error == "stop" or isinstance(self._error, RunInUseError)
        return self._error is not None and stops

    def check(self) -> None:
        """Tell of a checkpoint that could not be written; does not wait for one under way.

        Raises:
            RunError: it could not, and ``on_error`` is ``stop`` or the directory is another's.
        """
        error, stops = self._error, self.failed
        if stops:
            assert error is not None
            raise error
        if error is not None:
            self._error = None
            self._tell(f"warning: {error}; going on without (checkpoint.on_error=continue)")

    def wait(self) -> None:
        """Wait until all is on the disk, then :meth:`check`."""
        self._join()
        self.check()

    def close(self) -> None:
        """Wait until all is on the disk; errors are for :meth:`wait` to tell."""
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: dict[str, Any]) -> None:
        try:
            self._before()
            checkpoint.save_last(self._directory, snapshot)
        except RunError as error:
            self._error = error
        except Exception as error:  # told by the training thread: nobody sees this one's
            self._error = RunError(f"cannot write a checkpoint: {error!r}")


def _copied(tree: Any) -> Any:
    """``tree`` with its tensors copied to the CPU, out of the optimizer's reach."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_copied(value) for value in tree]
    return tree
