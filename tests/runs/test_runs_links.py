"""Links that another user plants in a writable run directory: nothing is written through them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from sn_imagenet.runs import MetricsFile, RunDirectory, RunError, checkpoint, write_json

TOKEN = "0" * 32


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The target of a planted link."""
    path = tmp_path / "target"
    path.write_text("precious")
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        (f"result.json.{TOKEN}.tmp", lambda run: write_json(run.result, {})),
        (f"final.pt.{TOKEN}.tmp", lambda run: checkpoint.save(run.final, {})),
    ],
    ids=["result", "network"],
)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_with_a_guessed_temporary_name(
    directory: RunDirectory,
    target: Path,
    name: str,
    write: Callable[[RunDirectory], None],
    dangling: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: TOKEN)
    if dangling:
        target.unlink()
    (directory.path / name).symlink_to(target)
    with pytest.raises(RunError, match=r"cannot write .*: File exists"):
        write(directory)
    assert target.exists() is not dangling
    assert dangling or target.read_text() == "precious"
    assert not any((directory.result.exists(), directory.final.exists(), directory.lock.exists()))


def test_links_in_place_of_checkpoints(directory: RunDirectory, target: Path) -> None:
    """They are replaced and never followed."""
    for path in (directory.newest, directory.last, directory.previous):
        path.symlink_to(target)
    for step in (1, 2):
        checkpoint.save_last(directory, {"step": step})
    assert target.read_text() == "precious"
    assert not directory.last.is_symlink() and not directory.previous.is_symlink()
    assert checkpoint.load(directory.last)["step"] == 2
    assert checkpoint.load(directory.previous)["step"] == 1


def test_a_link_in_place_of_the_metrics_is_reported_and_replaced(
    directory: RunDirectory, target: Path
) -> None:
    directory.metrics.symlink_to(target)
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: Too many levels of symb"):
        MetricsFile(directory.metrics)
    resumed = MetricsFile(directory.metrics, b'{"step": 1}\n')
    resumed.close()
    assert "had a wrong line 1" in resumed.damage
    assert target.read_text() == "precious"
    assert not directory.metrics.is_symlink()
