"""The number that stands for a run in tables and progress displays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sn_imagenet.runs.reading import mapping


@dataclass(frozen=True)
class Score:
    """``key``: its name in an evaluation and in ``metrics.jsonl``. ``label`` and ``unit``: as it is
    displayed; ``unit`` may be empty. ``higher_is_better``: the direction of an improvement.
    """

    key: str
    label: str
    unit: str = ""
    higher_is_better: bool = True

    def format(self, value: float) -> str:
        """``top-1 95.25``; values without a unit in percent have five significant digits."""
        return f"{self.label} {value:.2f}" if self.unit == "%" else f"{self.label} {value:.5g}"

    @property
    def speed_unit(self) -> str:
        """``images/s`` for top-1; ``samples/s`` for others, whose samples may be no images."""
        return "images/s" if self == TOP1 else "samples/s"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


TOP1 = Score("top1", "top-1", "%")
UNKNOWN = Score("score", "score")
"""Of a task other than classification, before its first value."""


def read_score(entry: Any) -> Score:
    """The score from its entry in ``result.json`` or ``metrics.jsonl``; without one, top-1.

    Raises:
        KeyError, TypeError: the entry is malformed.
    """
    if entry is None:
        return TOP1
    values = mapping(entry)
    return Score(
        str(values["key"]),
        str(values["label"]),
        str(values["unit"]),
        bool(values["higher_is_better"]),
    )
