"""The errors that a user can mend; every room raises its own kind of them."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend; shown without a traceback.

    ``agreed``: whether every rank of the run raised it, so that one of them may speak for all.
    """

    agreed = False


class ConfigError(UserError):
    """A value of the configuration is wrong."""
