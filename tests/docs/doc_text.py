"""Finds the commands, overrides and blocks of code in the documentation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "sn_imagenet" / "norms" / "README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
)
# A span or line of code that begins with one of these is a command.
PROGRAMS = ("make", "python", "torchrun", "pytest", "pip", "tensorboard", "pre-commit", "source")
PROGRAMS += ("bash", "sh", "sbatch", "srun", "scancel", "docker", "conda", "ruff", "mypy", "git")
SHELL = ("bash", "sh", "shell", "console")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*$")
_OVERRIDE = re.compile(r"[a-z][\w./]*=(?!GxN)[\w./{}-]*$")


def blocks(*languages: str, pages: tuple[Path, ...] = PAGES) -> list[str]:
    """The fenced blocks in one of ``languages``; "" selects blocks without a language."""
    matches = (match for page in pages for match in _FENCE.finditer(page.read_text()))
    return [match[2] for match in matches if match[1] in languages]


def spans() -> list[str]:
    """The code spans in text and tables."""
    texts = (_FENCE.sub("", page.read_text()) for page in PAGES)
    return [" ".join(span.split()) for text in texts for span in _SPAN.findall(text)]


def commands() -> list[str]:
    """All distinct commands of the pages: the lines of shell blocks, and code spans."""
    lines = [
        re.sub(r"(^|\s+)#.*", "", line)
        for block in blocks(*SHELL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return list(dict.fromkeys([*filter(None, lines), *filter(is_command, spans())]))


def is_command(text: str) -> bool:
    words = text.split()
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    return len(words) > 1 and words[0] in PROGRAMS


def overrides() -> list[str]:
    """All distinct ``key=value`` and ``key=`` outside commands."""
    return list(dict.fromkeys(filter(_OVERRIDE.match, spans())))


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """(environment variables, words) of a command line."""
    words = shlex.split(command)
    variables = {}
    while _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words
