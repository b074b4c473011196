"""scripts/prepare_data.py: what it finds, all that is bad, and what marking does to a training."""

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


def prepared(path: Path, mark: bool = False, verify: bool = True) -> tuple[bool, str]:
    lines: list[str] = []
    sound = prepare_data(path, verify=verify, mark=mark, workers=2, say=lines.append)
    return sound, "\n".join(lines)


def folders(root: Path) -> DataSets:
    data = data_config("imagefolder", train=str(root / "train"), val=str(root / "val"))
    return build(data, PLAIN, seed=0)


@pytest.mark.parametrize("layout", imagenets.LAYOUTS)
def test_every_layout_is_found(tmp_path: Path, layout: str) -> None:
    root = imagenets.LAYOUTS[layout](tmp_path / "data")
    sound, told = prepared(root)
    assert sound
    assert "training set:" in told and "12 images in 4 classes, 3 to 3 in each" in told
    assert "validation set:" in told and "6 images in 4 classes, 1 to 2 in each" in told
    assert told.count("(indexed)") == 2 and "use: data=" in told
    assert prepared(root, verify=False)[1].count("(its index is up to date)") == 2
    # One part alone, as an error names it.
    kept = sorted(root.rglob("*.index.npz"))
    assert len(kept) == 2
    for index in kept:
        origin = index.with_name(index.name.removesuffix(".index.npz"))
        assert prepared(origin)[1].count(" set: ") == 1


def test_all_bad_files_are_listed_and_marked(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    first = root / "train" / "n01443537" / "n01443537_9.JPEG"
    last = root / "train" / "n02105855" / "n02105855_100.JPEG"
    first.write_text("no image")
    last.write_bytes(last.read_bytes()[:200])
    before = folders(root)
    with pytest.raises(DataError, match=r"in epoch 3: .*_9\.JPEG cannot be read.*--mark$"):
        [before.train[2, i] for i in range(12)]

    sound, told = prepared(root)
    assert not sound and f"bad: {first}: no known image format" in told and f"bad: {last}" in told
    assert "2 bad" in told and "add --mark" in told
    assert folders(root).fingerprint == before.fingerprint  # nothing is left out unasked

    sound, told = prepared(root, mark=True)
    assert sound and "2 bad, marked" in told and "2 marked as bad and left out" in told
    after = folders(root)
    assert len([after.train[0, i] for i in range(len(after.train))]) == 10
    assert after.fingerprint["train"]["left_out"] == [first.name, last.name]
    assert after.fingerprint["train"]["sha256"] != before.fingerprint["train"]["sha256"]
    assert after.fingerprint["val"] == before.fingerprint["val"]
    assert "2 marked" in prepared(root, verify=False)[1]  # and stay so


def test_a_file_of_another_size_is_indexed_anew(tmp_path: Path) -> None:
    """Which its folder's time does not tell, and a training refuses, naming this as the mend."""
    root = imagenets.folders(tmp_path)
    photo = root / "train" / "n01443537" / "n01443537_9.JPEG"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:200])
    assert not prepared(root)[0]
    photo.write_bytes(whole)
    with pytest.raises(DataError, match=r"has .* bytes, and had 200 when its index was made"):
        [folders(root).train[0, i] for i in range(12)]
    sound, told = prepared(root)
    assert sound and told.count("(indexed anew: it changed since)") == 1
    assert len([folders(root).train[0, i] for i in range(12)]) == 12


def test_the_script(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    (root / "val" / "n01751748" / "ILSVRC2012_val_00000001.JPEG").write_text("no image")

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    code, told = run(str(root), "--workers", "1")
    assert (code, told.count("bad: ")) == (1, 1), told
    assert f"use: data=imagefolder data.train={root}/train data.val={root}/val" in told
    code, told = run(str(root / "absent"))
    assert (code, told) == (2, f"error: {root}/absent: there is no such folder or archive.\n")


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "other.tar").write_bytes(b"")
    with pytest.raises(DataError, match="is none of ImageNet's archives"):
        prepared(tmp_path / "other.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no class folders in it"):
        prepared(tmp_path / "empty")
