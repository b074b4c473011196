"""The error of this room."""

from __future__ import annotations

from sn_imagenet.errors import UserError


class DataError(UserError):
    """Data that the user can mend: a missing folder, a broken file, a batch larger than the set.

    A DataLoader re-raises a worker's exception as ``type(error)(text)``, where ``text`` is a
    heading and the worker's traceback; only the message at its end is for the user.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught DataError in DataLoader worker"):
            message = message.rpartition(f"{__name__}.DataError: ")[2].strip()
        super().__init__(message)
