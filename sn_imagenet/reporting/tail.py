"""The end of a ``metrics.jsonl``, read while another process may be writing it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_FIRST = 1 << 16
_LONGEST = 1 << 24  # bytes; far beyond the rows of one epoch of ImageNet


def last_rows(metrics: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The last ``train`` and the last ``epoch`` row of a ``metrics.jsonl``, None where there is
    none; a row that is being written is passed over. Reads from the end, as much as it needs.
    """
    train: dict[str, Any] | None = None
    epoch: dict[str, Any] | None = None
    try:
        with open(metrics, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            length = _FIRST
            while True:
                file.seek(max(0, size - length))
                train, epoch = _last_of_each(file.read(min(length, size)))
                if (train and epoch) or length >= min(size, _LONGEST):
                    return train, epoch
                length *= 8
    except OSError:
        return train, epoch


def _last_of_each(tail: bytes) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    found: dict[str, dict[str, Any]] = {}
    for line in reversed(tail.split(b"\n")):
        try:
            row = json.loads(line)
            found.setdefault(row["kind"], row)
        except (ValueError, KeyError, TypeError):
            continue  # cut off by the tail's start, or by a writer at work
        if {"train", "epoch"} <= found.keys():
            break
    return found.get("train"), found.get("epoch")
