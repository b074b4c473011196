"""The errors that a user can mend; every room raises its own kind of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# In the environment: a folder in which each rank leaves its exit code, in a file named by the rank.
# For who starts the program under torchrun, which ends with 1 whatever its processes ended with.
EXIT_CODES = "SN_IMAGENET_EXIT_CODES"


class UserError(ValueError):
    """Something that the user can mend; shown without a traceback.

    ``agreed``: whether every rank of the run raised it, so that one of them may speak for all.
    ``exit_code``: what the program ends with.
    """

    agreed = False
    exit_code = 2


class ConfigError(UserError):
    """A value of the configuration is wrong."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of the ``known`` names that ``name`` was probably meant to be, if any."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)
