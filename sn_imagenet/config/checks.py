"""Checks of config values, which raise a :class:`ConfigError`, and the home folder in paths."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sn_imagenet.errors import ConfigError


def expand_home(path: str | None) -> str | None:
    """``path`` with the home folder for a ``~`` at its start."""
    return path and os.path.expanduser(path)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_one_of(key: str, value: str, choices: Sequence[str]) -> None:
    require(value in choices, f"{key}={value}: expected one of {', '.join(choices)}")


def require_at_least(prefix: str, section: Any, **least: float) -> None:
    """Require that fields of ``section`` have at least these values, or are null if they may be."""
    types = {field.name: str(field.type) for field in fields(section)}
    for name, bound in least.items():
        value = getattr(section, name)
        or_null = "null or " if "None" in types[name] else ""
        expected = f"expected {or_null}at least {bound}"
        require(value is None or value >= bound, f"{prefix}.{name}={value}: {expected}")


def require_seed(key: str, seed: int) -> None:
    # Random generators and the seeds of samples take signed 64-bit integers.
    require(
        0 <= seed < 2**63, f"{key}={seed}: expected a whole number of at least 0 and below 2^63"
    )


def read_architecture(file: str) -> Any:
    """The content of ``model.args.architecture``, so that the config does not depend on the file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise ConfigError(
            f"model.args.architecture={file}: cannot be read ({reason}); expected the "
            "architecture.json of a finished run of task=architecture_search"
        ) from error
