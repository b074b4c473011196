"""Errors that a user can fix; each package raises its own subclasses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

# Environment variable with a folder in which each rank writes its exit code, to a file named by the
# rank. Launchers need it because torchrun exits with 1 whatever its processes exit with.
EXIT_CODES = "SN_IMAGENET_EXIT_CODES"


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


class ConfigError(UserError):
    """A value in the configuration is invalid."""


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """The name in ``known`` that is most similar to ``name``, or None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)
