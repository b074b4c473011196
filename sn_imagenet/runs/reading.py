"""Reads what another process, another version or an accident may have left: any content at all.

What comes out can be worked with: finite numbers, text that can be printed, nesting that ends.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import OmegaConf

from sn_imagenet.runs.files import RunError

_LARGEST = 1 << 26  # bytes; a result is a thousandth of it
_LARGEST_YAML = 1 << 18  # a config is a fiftieth of it; YAML is read slowly
_DEEPEST = 64
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: there is none, or the disk refuses.
        RunError: it is none, or holds what no run writes; says why, without naming the file.
    """
    return parse_json(_text(path, _LARGEST))


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """``text`` as JSON.

    Args:
        finite: refuse NaN and infinities, which JSON has not but Python writes.

    Raises:
        RunError: it is none, or holds what no run writes.
    """
    try:
        value = json.loads(text)
        _check(value, _DEEPEST, finite)
    except (ValueError, RecursionError) as error:
        raise RunError(_reason(error)) from error
    return value


def read_yaml(path: Path) -> Any:
    """The content of a YAML file in which nothing refers to anything else.

    Raises:
        OSError: there is none, or the disk refuses.
        RunError: it is none, or holds what no run writes; says why, without naming the file.
    """
    try:
        text = _text(path, _LARGEST_YAML)
        # A few lines of aliases or interpolations can stand for more than any memory holds.
        _check_events(text)
        if "${" in text:
            raise ValueError("it holds an interpolation")
        # Through OmegaConf, for which 1e-4 is a number, as it was when the run was configured.
        value = OmegaConf.to_container(OmegaConf.create(text))
        _check(value, _DEEPEST, finite=True)
    except OSError:
        raise
    except Exception as error:
        # Whatever these libraries find wrong with it: they raise more than their own errors.
        raise RunError(_reason(error)) from error
    return value


def open_to_read(path: Path) -> IO[bytes]:
    """Open a file that may be a pipe, for whose writer nobody is to wait.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def mapping(value: Any) -> dict[str, Any]:
    """``value``, None as an empty mapping.

    Raises:
        TypeError: it is neither.
    """
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{value!r} where a mapping is expected")
    return value or {}


def number(value: Any) -> float:
    """``value``, which may be NaN: a network may give nothing else.

    Raises:
        TypeError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} where a number is expected")
    return value


def _check_events(text: str) -> None:
    """Refuse aliases, and nesting as soon as it is met: a scanner's time grows as its square."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it holds an alias")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST}")


def _text(path: Path, largest: int) -> str:
    with open_to_read(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise RunError(f"larger than {largest} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunError(_reason(error)) from error


def _check(value: Any, depth: int, finite: bool) -> None:
    if depth == 0:
        raise ValueError(f"nested deeper than {_DEEPEST}")
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
        raise ValueError(f"{value} is no number")
    elif isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("a whole number of more than 64 bits")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
