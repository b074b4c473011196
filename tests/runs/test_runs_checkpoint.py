"""Checkpoints: a damaged one is refused, and the previous one is loaded instead."""

from __future__ import annotations

import os
import pickle
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import read_only, size_limit

from sn_imagenet.runs import RunDirectory, RunError, checkpoint


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "seconds": 1.5,
        "last_finite_loss": None,
        "world_sizes": [1, 2],
        "model": {
            "conv.weight": torch.randn(64, 3, 3, 3, generator=generator),
            "bn.num_batches_tracked": torch.tensor(step),
            "half": torch.randn(8, generator=generator).bfloat16(),
            "double": torch.randn(8, generator=generator, dtype=torch.float64),
        },
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 1}],
        },
    }


def save_last(directory: RunDirectory, step: int) -> None:
    saver = checkpoint.CheckpointSaver(directory, lambda: None)
    saver.save(state(step))
    saver.wait()


def assert_is_state(loaded: dict[str, Any] | None, step: int) -> None:
    assert loaded is not None
    expected = {"version": checkpoint.VERSION, **state(step)}
    assert loaded.keys() == expected.keys()
    torch.testing.assert_close(loaded["model"], expected["model"], rtol=0, atol=0)
    for key in expected.keys() - {"model", "optimizer"}:
        assert loaded[key] == expected[key]
    torch.testing.assert_close(loaded["optimizer"], expected["optimizer"], rtol=0, atol=0)


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", state(3))
    assert_is_state(checkpoint.load(tmp_path / "a.pt"), 3)
    # Plain tensors and dicts, readable by any program.
    assert torch.load(tmp_path / "a.pt", weights_only=True)["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_the_advice_names_a_folder_as_the_shell_and_hydra_read_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "it's mine")
    run.path.mkdir()
    for problem in ("has no batch average", "is not a readable checkpoint"):
        with pytest.raises(RunError, match=problem) as caught:
            checkpoint.load_batch_average(run)
        words = shlex.split(str(caught.value).partition("python ")[2])
        assert words[:2] == ["evaluate.py", f'run="{run.path}"']
        run.batch_average.write_bytes(b"damaged")


def test_the_last_two_are_kept(directory: RunDirectory) -> None:
    assert checkpoint.load_last(directory) == (None, [])
    for step in range(1, 5):
        save_last(directory, step)
        loaded, warnings = checkpoint.load_last(directory)
        assert_is_state(loaded, step)
        assert warnings == []
    assert_is_state(checkpoint.load(directory.previous), 3)
    assert {p.name for p in directory.path.iterdir()} == {"last.pt", "previous.pt"}


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no checkpoint .*a\.pt"):
        checkpoint.load(tmp_path / "a.pt")


class ExecutesCode:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def truncate(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        os.truncate(path, int(share * path.stat().st_size))

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{
        f"truncated to {share:.0%}": truncate(share) for share in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
    },
    "without its last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("epoch: 3\n"),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "zeros, as after a power cut": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a list": lambda path: torch.save([1, 2], path),
    "another version": lambda path: torch.save({"version": 99}, path),
    "another's checkpoint": lambda path: torch.save({"state_dict": {}}, path),
    "an old-format file": lambda path: torch.save(
        {"state_dict": {}}, path, _use_new_zipfile_serialization=False
    ),
    "a pickle of code": lambda path: path.write_bytes(
        pickle.dumps({"version": 1, "step": ExecutesCode(path.with_name("ran"))})
    ),
    "a checkpoint of code": lambda path: torch.save(
        {"version": 1, "step": ExecutesCode(path.with_name("ran"))}, path
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_loaded(
    directory: RunDirectory, kind: str
) -> None:
    for step in (1, 2):
        save_last(directory, step)
    DAMAGES[kind](directory.last)
    with pytest.raises(RunError) as caught:
        checkpoint.load(directory.last)
    assert str(directory.last) in str(caught.value)
    assert len(str(caught.value)) < 600
    loaded, warnings = checkpoint.load_last(directory)
    assert_is_state(loaded, 1)
    assert warnings == [str(caught.value)]
    assert not directory.path.joinpath("ran").exists(), "the code in the checkpoint was executed"


def test_a_flipped_bit_is_detected_or_harmless(tmp_path: Path) -> None:
    """A zip file has padding bytes, but a changed tensor byte must always be detected."""
    path = tmp_path / "a.pt"
    checkpoint.save(path, state(1))
    whole = path.read_bytes()
    draw = random.Random(0)
    weights = whole.index(state(1)["model"]["conv.weight"].numpy().tobytes())
    positions = [draw.randrange(len(whole)) for _ in range(150)]
    refused = 0
    for position in [weights, weights + 1000, *positions]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = checkpoint.load(path)
        except RunError:
            refused += 1
        else:
            assert_is_state(loaded, 1)
    assert refused > 50


def test_a_full_disk_leaves_the_old_checkpoints(directory: RunDirectory) -> None:
    for step in (1, 2):
        save_last(directory, step)
    for size in (0, 1000, directory.last.stat().st_size - 1):
        with size_limit(size), pytest.raises(RunError, match=r"cannot write .*: File too large"):
            save_last(directory, 3)
        loaded, warnings = checkpoint.load_last(directory)
        assert_is_state(loaded, 2)
        assert warnings == []
        assert {p.name for p in directory.path.iterdir()} == {"last.pt", "previous.pt"}
    # Once there is space, the next checkpoint is written normally.
    save_last(directory, 3)
    assert_is_state(checkpoint.load(directory.last), 3)
    assert_is_state(checkpoint.load(directory.previous), 2)
    assert {p.name for p in directory.path.iterdir()} == {"last.pt", "previous.pt"}


def test_a_full_disk_keeps_the_checkpoint_that_the_run_resumed_from(
    directory: RunDirectory,
) -> None:
    """A full disk truncated last.pt, and it is still full when the resumed run saves."""
    for step in (1, 2):
        save_last(directory, step)
    truncate(0.5)(directory.last)
    with size_limit(1000), pytest.raises(RunError, match="File too large"):
        save_last(directory, 2)
    loaded, warnings = checkpoint.load_last(directory)
    assert_is_state(loaded, 1)
    assert len(warnings) == 1


def test_leftover_files_of_a_killed_writer_are_harmless(directory: RunDirectory) -> None:
    save_last(directory, 1)
    for name in ("last.pt.tmp", "previous.pt.tmp", "newest.pt", "newest.pt.tmp"):
        directory.path.joinpath(name).write_bytes(b"half of a checkp")
    loaded, warnings = checkpoint.load_last(directory)
    assert_is_state(loaded, 1)
    assert warnings == []
    save_last(directory, 2)
    assert_is_state(checkpoint.load_last(directory)[0], 2)
    assert_is_state(checkpoint.load(directory.previous), 1)


def test_a_run_killed_between_the_two_renames_is_resumed(directory: RunDirectory) -> None:
    for step in (1, 2):
        save_last(directory, step)
    os.replace(directory.last, directory.previous)
    loaded, warnings = checkpoint.load_last(directory)
    assert_is_state(loaded, 2)
    assert warnings == []


def test_a_read_only_folder(open_directory: RunDirectory) -> None:
    for step in (1, 2):
        save_last(open_directory, step)
    with read_only(open_directory.path):
        with pytest.raises(RunError, match=r"cannot write .*: Permission denied"):
            save_last(open_directory, 3)
        assert_is_state(checkpoint.load_last(open_directory)[0], 2)
        assert_is_state(checkpoint.load(open_directory.previous), 1)
