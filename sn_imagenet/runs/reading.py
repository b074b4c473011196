"""Reads JSON and YAML files with any content, including damaged files and other versions.

Values that are returned are safe to use: finite numbers, printable text, limited nesting.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import OmegaConf

from sn_imagenet.runs.files import RunError

_MAX_BYTES = 1 << 26  # a thousand times the size of a result
_MAX_YAML_BYTES = 1 << 18  # fifty times the size of a config; parsing YAML is slow
_MAX_DEPTH = 64
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, if PyYAML was built with it


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: the file is missing or cannot be read.
        RunError: it is not valid, or holds values that no run writes. The message gives the reason
            without the file name.
    """
    return parse_json(_read_text(path, _MAX_BYTES))


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """Parse ``text`` as JSON.

    Args:
        finite: refuse NaN and infinities, which Python writes although JSON does not allow them.

    Raises:
        RunError: it is not JSON, or holds values that no run writes.
    """
    try:
        value = json.loads(text)
        _check(value, _MAX_DEPTH, finite)
    except (ValueError, RecursionError) as error:
        raise RunError(_reason(error)) from error
    return value


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; aliases and interpolations are refused.

    Raises:
        OSError: the file is missing or cannot be read.
        RunError: it is not valid, or holds values that no run writes. The message gives the reason
            without the file name.
    """
    try:
        text = _read_text(path, _MAX_YAML_BYTES)
        # A few lines of aliases or interpolations can expand to more than fits in memory.
        _check_events(text)
        if "${" in text:
            raise ValueError("it holds an interpolation")
        # OmegaConf reads 1e-4 as a number, as it did when the run was configured; PyYAML does not.
        value = OmegaConf.to_container(OmegaConf.create(text))
        _check(value, _MAX_DEPTH, finite=True)
    except OSError:
        raise
    except Exception as error:
        # These libraries raise more than their own error types on invalid input.
        raise RunError(_reason(error)) from error
    return value


def open_to_read(path: Path) -> IO[bytes]:
    """Open a file that is not a pipe or device, whose reading may never end.

    Raises:
        OSError: the file is missing, not a regular one, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def mapping(value: Any) -> dict[str, Any]:
    """Require that ``value`` is a dict and return it; None becomes an empty dict.

    Raises:
        TypeError: it is neither.
    """
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{value!r} where a mapping is expected")
    return value or {}


def number(value: Any) -> float:
    """Require that ``value`` is a number and return it. NaN is allowed: networks produce it.

    Raises:
        TypeError: it is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} where a number is expected")
    return value


def _check_events(text: str) -> None:
    """Refuse aliases, and deep nesting as soon as it occurs: parsing time is quadratic in depth."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it holds an alias")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}")


def _read_text(path: Path, max_bytes: int) -> str:
    with open_to_read(path) as file:
        # read(n) reserves n bytes, however few there are.
        content = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    if len(content) > max_bytes:
        raise RunError(f"larger than {max_bytes} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunError(_reason(error)) from error


def _check(value: Any, depth: int, finite: bool) -> None:
    if depth == 0:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check(key, depth - 1, finite)
            _check(inner, depth - 1, finite)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth - 1, finite)
    elif isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate cannot be printed
    elif isinstance(value, float) and finite and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    elif isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("an integer of more than 64 bits")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
