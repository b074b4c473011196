"""Asynchronous checkpoints: copy the state to memory, then write it to disk in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from sn_imagenet.runs import checkpoint
from sn_imagenet.runs.directory import RunDirectory
from sn_imagenet.runs.files import RunError


class CheckpointSaver:
    """Writes one checkpoint at a time, in order; training waits only for the copy in memory.

    Args:
        before_write: called in the writing thread before each checkpoint, to flush what must be on
            the disk by then. May raise RunError.
        on_error: ``stop`` raises an error at the next :meth:`check`; ``continue`` only prints it.
        print_line: prints one line.
    """

    def __init__(
        self,
        directory: RunDirectory,
        before_write: Callable[[], None],
        on_error: str,
        print_line: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._before_write = before_write
        self._on_error = on_error
        self._print_line = print_line
        self._thread: threading.Thread | None = None
        self._error: RunError | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Copy ``state`` and write it after the previous one. :meth:`check` raises errors."""
        self._join()
        if self.failed:
            return
        snapshot = _copy_to_cpu(state)
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether :meth:`check` would raise."""
        return self._error is not None and self._on_error == "stop"

    def check(self) -> None:
        """Report a checkpoint that could not be written, without waiting for a write in progress.

        Raises:
            RunError: writing failed, and ``on_error`` is ``stop``.
        """
        error, stops = self._error, self.failed
        if stops:
            assert error is not None
            raise error
        if error is not None:
            self._error = None
            self._print_line(f"warning: {error}; skipping this one (checkpoint.on_error=continue)")

    def wait(self) -> None:
        """Wait until everything is on the disk, then :meth:`check`."""
        self._join()
        self.check()

    def close(self) -> None:
        """Wait until everything is on the disk. Does not raise errors; :meth:`wait` does."""
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: dict[str, Any]) -> None:
        try:
            self._before_write()
            checkpoint.save_last(self._directory, snapshot)
        except RunError as error:
            self._error = error
        except Exception as error:  # check() raises it in the training thread
            self._error = RunError(f"cannot write a checkpoint: {error!r}")


def _copy_to_cpu(tree: Any) -> Any:
    """``tree`` with its tensors copied to the CPU, so that the optimizer cannot change them."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copy_to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_copy_to_cpu(value) for value in tree]
    return tree
