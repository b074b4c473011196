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
    """

    def __init__(self, directory: RunDirectory, before_write: Callable[[], None]) -> None:
        self._directory = directory
        self._before_write = before_write
        self._thread: threading.Thread | None = None
        self._error: RunError | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Copy ``state`` and write it after the previous one. :meth:`wait` raises errors."""
        self.close()
        if self.failed:
            return
        snapshot = _copy_to_cpu(state)
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; does not wait for a write in progress."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            RunError: a checkpoint could not be written.
        """
        self.close()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until everything is on the disk. Does not raise errors; :meth:`wait` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: dict[str, Any]) -> None:
        try:
            self._before_write()
            checkpoint.save_last(self._directory, snapshot)
        except RunError as error:
            self._error = error
        except Exception as error:  # wait() raises it in the training thread
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
