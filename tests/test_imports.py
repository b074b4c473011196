"""Imports go downwards through the rooms of the design."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "sn_imagenet"
FILES = sorted(
    file
    for file in [*ROOT.glob("*.py"), *ROOT.glob("*/**/*.py")]
    if not any(part.startswith(".") or part == "build" for part in file.relative_to(ROOT).parts)
)
MODULES = [file for file in FILES if file.is_relative_to(ROOT / PACKAGE)]
ENTRY_POINTS = [
    file for file in FILES if file.parent in (ROOT, ROOT / "scripts") and file.name != "conftest.py"
]

# A room imports itself and those of lower rank.
RANKS = {
    "errors": 0,
    "output": 0,
    "config": 1,
    "command_line": 8,
    "norms": 2,
    "runs": 2,
    "data": 3,
    "models": 3,
    "distributed": 4,
    "evaluation": 5,
    "training": 6,
    "benchmark": 7,
}
# These stand apart: what a room may import of the package, itself aside.
APART = {
    "norms": set(),  # to be lifted into any other project
    "reporting": {"errors", "config", "runs"},  # result files only
    "sweeps": {"errors", "config", "runs", "reporting"},  # starts train.py, knows nothing of it
}
# What must never be imported, through whatever chain of the package's modules.
LIGHT = ("runs", "reporting", "sweeps")
# In a light room, but imported by their paths alone.
NOT_LIGHT = {f"{PACKAGE}.runs.checkpoint", f"{PACKAGE}.runs.saver"}
HEAVY = {"torch", "torchvision", "timm"}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, as absolute dotted names."""
    known = {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def of_package(file: Path) -> set[str]:
    return {name for name in imports(file) if name.split(".")[0] == PACKAGE}


def top_level(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def test_the_files_are_found() -> None:
    assert {"train.py", "scripts/make_tables.py", "sn_imagenet/norms/op.py"} <= {
        str(file.relative_to(ROOT)) for file in FILES
    }
    assert ROOT / "train.py" in ENTRY_POINTS
    assert "torch" in top_level(ROOT / PACKAGE / "norms" / "op.py")
    assert f"{PACKAGE}.config" in of_package(ROOT / "train.py")


def test_what_is_not_light_is_there() -> None:
    assert {name_of(module) for module in MODULES} >= NOT_LIGHT


def test_every_room_has_its_place() -> None:
    rooms = {room_of(name_of(module)) for module in MODULES} - {""}
    assert rooms == RANKS.keys() | APART.keys(), "give a new room its place here"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_downwards(module: Path) -> None:
    room = room_of(name_of(module))
    for imported in of_package(module):
        other = room_of(imported)
        if other == room:
            continue
        if room in APART:
            allowed = other in APART[room]
        else:
            allowed = RANKS.get(other, 99) < RANKS.get(room, 99)
        assert allowed, f"{name_of(module)} imports {imported}: that is not downwards"


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_need_no_torch(room: str) -> None:
    """At any depth: importing a module runs its packages' __init__ files as well."""
    files = {name_of(module): module for module in MODULES}
    waiting = [name for name in files if room_of(name) == room and name not in NOT_LIGHT]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in files:
            continue
        seen.add(name)
        heavy = top_level(files[name]) & HEAVY
        assert not heavy, f"{room} reaches {name}, which imports {', '.join(sorted(heavy))}"
        parents = name.split(".")
        waiting += [".".join(parents[:depth]) for depth in range(1, len(parents))]
        waiting += of_package(files[name])
    assert any(room_of(name) == room for name in seen)


@pytest.mark.parametrize("entry", ENTRY_POINTS, ids=name_of)
def test_entry_points_are_short(entry: Path) -> None:
    lines = len(entry.read_text().splitlines())
    assert lines < 80, f"{entry.name} has {lines} lines: an entry point calls one function"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_shipped_imports_the_tests(file: Path) -> None:
    if not file.is_relative_to(ROOT / "tests"):
        assert not top_level(file) & {"tests", "pytest", "hypothesis"}
