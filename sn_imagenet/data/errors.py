"""The error that the data package raises."""

from __future__ import annotations

from sn_imagenet.errors import UserError


class DataError(UserError):
    """A data problem that the user can fix: a missing folder, a broken file, too large a batch.

    A DataLoader re-raises a worker's exception as ``type(error)(text)``, where ``text`` is a
    heading and the worker's traceback. Only the message at its end is kept.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught DataError in DataLoader worker"):
            message = message.rpartition(f"{__name__}.DataError: ")[2].strip()
        super().__init__(message)
