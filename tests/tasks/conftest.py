"""Data sets in COCO's format: small ones that are drawn, and real ones if they exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from coco_files import draw_data

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def drawn_options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The words of a command line that choose the drawn data."""
    return draw_data(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def drawn(drawn_options: tuple[str, ...]) -> Path:
    """The folder of the drawn data."""
    return Path(drawn_options[1].partition("=")[2]).parent


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``real("nuclei")``: a copy with links to the images, so that no index is written beside
    them."""

    def link(name: str) -> Path:
        if not (DATA / name / "annotations").is_dir():
            pytest.skip(f"the images of {name} are not available")
        root = tmp_path_factory.mktemp(name)
        (root / "annotations").mkdir()
        for entry in (DATA / name).iterdir():
            if entry.name != "annotations":
                (root / entry.name).symlink_to(entry)
        for file in (DATA / name / "annotations").glob("*.json"):
            (root / "annotations" / file.name).write_bytes(file.read_bytes())
        return root

    return link
