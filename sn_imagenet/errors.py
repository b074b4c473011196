"""Errors that a user can fix; each package raises its own subclasses."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any


def as_text(value: Any) -> str:
    """``str(value)`` as it can be printed and written: the bytes of a name that is not UTF-8 (a
    zip's ``caf\\xe9.jpg``) as such escapes."""
    text = str(value)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


class UserError(ValueError):
    """An error that the user can fix; shown without a traceback.

    ``raised_on_all_ranks``: whether every rank raises it, so that only rank 0 reports it.
    ``exit_code``: the exit code of the program.
    """

    raised_on_all_ranks = False
    exit_code = 2

    def __init__(self, *message: Any) -> None:
        super().__init__(*map(as_text, message))


_PERMIT, _SPACE = "Allow this user to use it, or choose another.", "Free some space."
_FILES = "Raise the limit of open files (ulimit -n 1024)."
_DISK = "The disk or network file system reported an error."
_MEMORY = (
    "A data loader worker was killed or ran out of memory. Lower data.workers=. In Docker, use "
    "--shm-size=8g or data.workers=0."
)
_OF_NUMBERS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), _PERMIT),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _SPACE),
    errno.EROFS: "Choose another place.",
    errno.EMFILE: _FILES,
    **dict.fromkeys((errno.EIO, errno.ESTALE), _DISK),
}
_OF_TEXTS = {
    "Too many open files": _FILES,
    "torchvision::nms does not exist": "Install the torchvision of torch's release and index (CPU "
    "or CUDA).",
    "start new thread": "Raise the limit of threads (ulimit -u).",
    **dict.fromkeys(("DataLoader worker (", "shared memory", "</torch_"), _MEMORY),
}


def machine_error(error: BaseException) -> str | None:
    """One line for an error of the machine rather than of the program; None for any other."""
    text, advice = " ".join(str(error).split()), None
    if isinstance(error, OSError):
        advice = _OF_NUMBERS.get(error.errno or 0)
    elif isinstance(error, RuntimeError):
        advice = next((_OF_TEXTS[part] for part in _OF_TEXTS if part in text), None)
    text = text.partition(". ")[0].rstrip(".")
    return advice and f"{text}. {advice} Then run the same command again."


class ConfigError(UserError):
    """A value in the configuration is invalid."""


def closest_name(name: str, known: Iterable[str], similarity: float = 0.5) -> str | None:
    """The name in ``known`` that is most similar to ``name``, or None if none has ``similarity``
    (0 to 1). The same letters in another case are the most similar."""
    by_lower = {each.lower(): each for each in known}
    match = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=similarity)
    return by_lower[match[0]] if match else None
