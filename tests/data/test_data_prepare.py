"""scripts/prepare_data.py finds data sets, lists bad files, and marks them for training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imagenets
import pytest
from small_configs import PLAIN, data_config

from sn_imagenet.data.datasets import DataSets, build
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.prepare import prepare_data

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_data.py"


def run_prepare_data(path: Path, mark: bool = False, verify: bool = True) -> tuple[bool, str]:
    lines: list[str] = []
    usable = prepare_data(path, verify=verify, mark=mark, workers=2, log=lines.append)
    return usable, "\n".join(lines)


def open_folders(root: Path) -> DataSets:
    data = data_config("imagefolder", train=str(root / "train"), val=str(root / "val"))
    return build(data, PLAIN, seed=0)


@pytest.mark.parametrize("layout", imagenets.LAYOUTS)
def test_finds_every_layout(tmp_path: Path, layout: str) -> None:
    root = imagenets.LAYOUTS[layout](tmp_path / "data")
    usable, output = run_prepare_data(root)
    assert usable
    assert "training set:" in output and "12 images in 4 classes, 3 to 3 in each" in output
    assert "validation set:" in output and "6 images in 4 classes, 1 to 2 in each" in output
    assert output.count("(indexed)") == 2 and "use: data=" in output
    assert run_prepare_data(root, verify=False)[1].count("(index is up to date)") == 2
    # A single split, with the path that an error shows.
    stored = sorted(root.rglob("*.index.npz"))
    assert len(stored) == 2
    for index in stored:
        origin = index.with_name(index.name.removesuffix(".index.npz"))
        assert run_prepare_data(origin)[1].count(" set: ") == 1


def test_lists_and_marks_all_bad_files(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    first = root / "train" / "n01443537" / "n01443537_9.JPEG"
    last = root / "train" / "n02105855" / "n02105855_100.JPEG"
    first.write_text("no image")
    last.write_bytes(last.read_bytes()[:200])
    before = open_folders(root)
    with pytest.raises(DataError, match=r"in epoch 3: .*_9\.JPEG cannot be read.*--mark$"):
        [before.train[2, i] for i in range(12)]

    usable, output = run_prepare_data(root)
    assert not usable and "2 bad" in output and "add --mark" in output
    assert f"bad: {first}: unknown image format" in output and f"bad: {last}" in output
    assert open_folders(root).fingerprint == before.fingerprint  # not marked, so not left out

    usable, output = run_prepare_data(root, mark=True)
    assert usable and "2 bad, marked" in output and "2 marked as bad and left out" in output
    after = open_folders(root)
    assert len([after.train[0, i] for i in range(len(after.train))]) == 10
    assert after.fingerprint["train"]["left_out"] == [first.name, last.name]
    assert after.fingerprint["train"]["sha256"] != before.fingerprint["train"]["sha256"]
    assert after.fingerprint["val"] == before.fingerprint["val"]
    assert "2 marked" in run_prepare_data(root, verify=False)[1]  # marks are kept


def test_rebuilds_the_index_after_a_file_changed_size(tmp_path: Path) -> None:
    """The folder's time does not show the change. Training refuses it and names this command."""
    root = imagenets.folders(tmp_path)
    photo = root / "train" / "n01443537" / "n01443537_9.JPEG"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:200])
    assert not run_prepare_data(root)[0]
    photo.write_bytes(whole)
    with pytest.raises(DataError, match=r"has .* bytes, but had 200 when its index was built"):
        [open_folders(root).train[0, i] for i in range(12)]
    usable, output = run_prepare_data(root)
    assert usable and output.count("(indexed again because it changed)") == 1
    assert len([open_folders(root).train[0, i] for i in range(12)]) == 12


def test_exit_codes_and_output_of_the_script(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    (root / "val" / "n01751748" / "ILSVRC2012_val_00000001.JPEG").write_text("no image")

    def run(*arguments: str) -> tuple[int, str]:
        process = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
        )
        return process.returncode, process.stdout + process.stderr

    code, output = run(str(root), "--workers", "1")
    assert (code, output.count("bad: ")) == (1, 1), output
    assert f"use: data=imagefolder data.train={root}/train data.val={root}/val" in output
    code, output = run(str(root / "absent"))
    assert (code, output) == (2, f"error: {root}/absent: there is no such folder or archive.\n")


def test_refuses_paths_without_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "other.tar").write_bytes(b"")
    with pytest.raises(DataError, match="is not an archive of ImageNet"):
        run_prepare_data(tmp_path / "other.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no class folders in it"):
        run_prepare_data(tmp_path / "empty")
