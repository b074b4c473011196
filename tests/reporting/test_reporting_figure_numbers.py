"""``figN.json`` of version 2 has the numbers of version 1, which was read from drawn figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import REPOSITORY

DATA = Path(__file__).parent / "data"  # committed figures of version 1, as study_figure
Panel = dict[str, Any]
Numbers = dict[str, Any]  # of one series: y, and low, high, values and x where version 1 has them


def convert(name: str, panel: Panel) -> list[Numbers]:
    """The numbers of each series in a panel of version 1: lines and marks as points, bars as [left,
    bottom, width, height], bands as corners."""
    if name.startswith("fig1"):
        return _with_intervals(panel)
    if name.startswith("fig3"):
        return _stacks(panel)
    if name.startswith("fig4"):
        return _groups_of_bars(panel)
    lines, bands = panel.get("lines", []), panel.get("bands", [])
    assert len(bands) in (0, len(lines))
    series = [{"x": [x for x, _ in line], "y": [y for _, y in line]} for line in lines]
    for one, band in zip(series, bands, strict=False):
        one["low"] = [min(y for at, y in band if at == x) for x in one["x"]]
        one["high"] = [max(y for at, y in band if at == x) for x in one["x"]]
    return series


def _with_intervals(panel: Panel) -> list[Numbers]:
    """Each method's lines are its seeds, if it has several, means, lower and upper ends. They are
    shifted against each other, so that the fraction of x tells methods apart. The ideal BN is
    last."""
    *lines, ideal = panel["lines"]
    is_ideal = {x for x, _ in ideal} == {0.0, 1.0} and len({y for _, y in ideal}) == 1
    lines = lines if is_ideal else panel["lines"]
    methods: dict[float, list[Any]] = {}
    for line in lines:
        offset = round(line[0][0] - round(line[0][0]), 4)
        methods.setdefault(offset, []).append(line)
    series = []
    for own in methods.values():
        positions = [x for x, _ in own[-1]]
        one: Numbers = dict(zip(("y", "low", "high"), map(_heights, own[-3:]), strict=True))
        one["x"] = [panel["ticks"][round(x)] for x in positions]
        dots = own[0] if len(own) == 4 else []
        one["values"] = [[v for x, v in dots if abs(x - at) < 1e-3] for at in positions]
        series.append(one)
    return series + ([{"y": [ideal[0][1]] * len(_settings(panel))}] if is_ideal else [])


def _heights(line: list[list[float]]) -> list[float]:
    return [y for _, y in line]


def _settings(panel: Panel) -> list[str]:
    return [tick for tick in panel["ticks"] if tick.startswith("(")]


def _stacks(panel: Panel) -> list[Numbers]:
    """Bars that stand on 0 begin a new setting; each member has a bar per layer."""
    layers = sum(bar[1] == 0 for bar in panel["bars"])
    bars = [bar[3] for bar in panel["bars"]]
    return [{"y": bars[i : i + layers]} for i in range(0, len(bars), layers)]


def _groups_of_bars(panel: Panel) -> list[Numbers]:
    """Bars a whole number of settings to the right of the last one are of the same member; errors
    are in the same order."""
    series: list[Numbers] = []
    left = float("inf")
    for bar, error in zip(panel["bars"], panel["bands"], strict=True):
        gap = bar[0] - left
        if gap < 0.5 or abs(gap - round(gap)) > 1e-3:
            series.append({"y": [], "low": [], "high": [], "values": []})
        left = bar[0]
        center = bar[0] + bar[2] / 2
        series[-1]["y"].append(bar[3])
        series[-1]["low"].append(min(y for _, y in error))
        series[-1]["high"].append(max(y for _, y in error))
        dots = panel["lines"][len(series) - 1]
        series[-1]["values"].append([v for x, v in dots if abs(x - center) < 1e-3])
    return series


def assert_same_numbers(name: str, version_1: list[Panel], version_2: dict[str, Any]) -> None:
    """Each number of the figure in version 1 is in version 2, within its six digits."""
    assert version_2["version"] == 2
    panels: dict[str, list[dict[str, Any]]] = {}
    for one in version_2["series"]:
        panels.setdefault(one.get("panel", ""), []).append(one)
    drawn = [numbers for panel in version_1 if (numbers := convert(name, panel))]
    for old_panel, new_panel in zip(drawn, panels.values(), strict=True):
        for old, new in zip(old_panel, new_panel, strict=True):
            assert new["y"] == pytest.approx(old["y"], rel=1e-5)
            if "x" in old:
                assert new["x"] == old["x"]
            for end in ("low", "high"):
                given = new.get(end, [None] * len(new["y"]))
                shown = [y if e is None else e for e, y in zip(given, new["y"], strict=True)]
                assert shown == pytest.approx(old.get(end, new["y"]), rel=1e-4)
            for values, dots in zip(new.get("values", []), old.get("values", []), strict=False):
                assert len(values) == 1 or values == pytest.approx(dots, rel=1e-5)


@pytest.mark.parametrize("old", sorted(DATA.glob("*_fig*.json")), ids=lambda file: file.stem)
def test_version_2_has_the_numbers_of_version_1(old: Path) -> None:
    study, _, name = old.name.partition("_")
    new = json.loads((REPOSITORY / "results" / study / name).read_text())
    assert_same_numbers(name, json.loads(old.read_text()), new)
