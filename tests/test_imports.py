"""Packages import only the packages below them."""

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

# A package imports itself and packages of lower rank.
RANKS = {
    "errors": 0,
    "output": 0,
    "environment": 1,
    "overrides": 1,
    "config": 1,
    "native": 1,
    "command_line": 9,
    "norms": 2,
    "runs": 2,
    "data": 3,
    "models": 3,
    "distributed": 4,
    "session": 5,
    "tasks": 5,
    "evaluation": 6,
    "training": 7,
    "benchmark": 8,
}
# These packages have no rank. Each lists what it may import of the project besides itself.
ALLOWED = {
    "norms": {"native"},  # both can be copied into any other project
    "reporting": {"errors", "config", "runs"},  # reads result files only
    "programs": {"command_line", "config", "distributed", "evaluation", "reporting", "runs"}
    | {"session", "training"},  # the entry points
    "sweeps": {"errors", "config", "runs", "reporting"},  # starts train.py as a process
}
# Packages that must not import HEAVY, not even indirectly.
LIGHT = ("runs", "reporting", "sweeps")
# Modules of light packages that import torch; they are imported by their full path only.
NOT_LIGHT = {f"{PACKAGE}.runs.{name}" for name in ("checkpoint", "provenance", "start")}
HEAVY = {"torch", "torchvision", "timm"}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    known = {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def project_imports(file: Path) -> set[str]:
    return {name for name in imports(file) if name.split(".")[0] == PACKAGE}


def top_level_imports(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def test_the_file_lists_are_complete() -> None:
    assert {ROOT / "train.py", ROOT / "scripts" / "make_tables.py"} <= set(FILES)
    assert "torch" in top_level_imports(ROOT / PACKAGE / "norms" / "op.py")
    assert f"{PACKAGE}.programs" in project_imports(ROOT / "train.py")


def test_every_package_has_a_rank_or_a_list() -> None:
    packages = {package_of(name_of(module)) for module in MODULES} - {""}
    assert packages == RANKS.keys() | ALLOWED.keys(), "add the new package to RANKS or ALLOWED"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_package_imports_only_packages_below_it(module: Path) -> None:
    package = package_of(name_of(module))
    for imported in project_imports(module):
        other = package_of(imported)
        if other == package:
            continue
        if package in ALLOWED:
            allowed = other in ALLOWED[package]
        else:
            allowed = RANKS.get(other, 99) < RANKS.get(package, 99)
        assert allowed, f"{name_of(module)} imports {imported}, which is not below it"


@pytest.mark.parametrize(
    ("package", "excluded"), [*((name, HEAVY) for name in LIGHT), ("training", {"matplotlib"})]
)
def test_light_packages_do_not_import(package: str, excluded: set[str]) -> None:
    """At any depth, including the __init__ files that an import runs."""
    files = {name_of(module): module for module in MODULES}
    pending = [name for name in files if package_of(name) == package and name not in NOT_LIGHT]
    visited: set[str] = set()
    while pending:
        name = pending.pop()
        if name in visited or name not in files:
            continue
        visited.add(name)
        heavy = top_level_imports(files[name]) & excluded
        assert not heavy, f"{package} imports {name}, which imports {', '.join(sorted(heavy))}"
        parents = name.split(".")
        pending += [".".join(parents[:depth]) for depth in range(1, len(parents))]
        pending += project_imports(files[name])
    assert any(package_of(name) == package for name in visited)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_tests_import_tests_pytest_and_hypothesis(file: Path) -> None:
    if not file.is_relative_to(ROOT / "tests"):
        assert not top_level_imports(file) & {"tests", "pytest", "hypothesis"}
