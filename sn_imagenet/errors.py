"""Errors that a user can fix; each package raises its own subclasses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Environment variable with a folder in which each rank writes its exit code, to a file named by the
# rank. Launchers need it because torchrun exits with 1 whatever its processes exit with.
EXIT_CODES = "SN_IMAGENET_EXIT_CODES"


class UserError(ValueError):
    """An error that the user can fix; shown without a traceback.

    ``raised_on_all_ranks``: whether every rank raises it, so that only rank 0 reports it.
    ``exit_code``: the exit code of the program.
    """

    raised_on_all_ranks = False
    exit_code = 2


class ConfigError(UserError):
    """A value in the configuration is invalid."""


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """The name in ``known`` that is most similar to ``name``, or None if none is similar. The same
    letters in another case are the most similar."""
    by_lower = {each.lower(): each for each in known}
    match = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[match[0]] if match else None
