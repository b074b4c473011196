"""scripts/prepare_data.py finds data sets, lists bad files, and marks them for training."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import imagenets
import numpy as np
import pytest
from disks import read_only
from hydra import compose, initialize_config_dir
from jpegs import jpeg
from PIL import Image
from small_configs import PLAIN, data_config

from sn_imagenet.config import from_hydra
from sn_imagenet.data.datasets import DataSets, build
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.prepare import prepare_data

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_data.py"


def run_prepare_data(path: Path, mark: bool = False, verify: bool = True) -> tuple[bool, str]:
    output = io.StringIO()
    with redirect_stdout(output):
        usable = prepare_data(path, verify=verify, mark=mark, workers=2)
    return usable, output.getvalue()


def run_command(output: str) -> list[int]:
    """The sizes of the splits that train.py opens with the ``use:`` line."""
    [line] = [line for line in output.splitlines() if line.startswith("use: ")]
    with initialize_config_dir(str(SCRIPT.parents[1] / "configs"), version_base=None):
        config = from_hydra(compose("config", shlex.split(line.removeprefix("use: "))))
    data = build(config.data, config.augment, seed=0)
    assert data.val is not None
    return [len(data.train), len(data.val)]


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
    assert output.count("  every file was decoded: 0 bad") == output.count("  index: ") == 2
    assert run_command(output) == [12, 6]
    # A single split, with the path that an error shows.
    stored = sorted(root.rglob("*.index.npz"))
    assert len(stored) == 2
    for index in stored:
        origin = index.with_name(index.name.removesuffix(".index.npz"))
        assert run_prepare_data(origin, verify=False)[1].count(" set: ") == 1


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
    assert len(open_folders(root).train) == 12  # not marked, so not left out

    usable, output = run_prepare_data(root, mark=True)
    assert usable and output.count("bad, marked: ") == 2
    assert "2 marked as bad and left out" in output
    after = open_folders(root)
    assert len([after.train[0, i] for i in range(len(after.train))]) == 10
    assert after.fingerprint["train"]["left_out"] == [first.name, last.name]
    assert after.fingerprint["train"]["sha256"] != before.fingerprint["train"]["sha256"]
    for verify in (False, True):
        usable, output = run_prepare_data(root, verify=verify)
        assert usable and "2 marked" in output  # marks are kept
    first.write_bytes(jpeg(0))
    usable, output = run_prepare_data(root)
    assert usable and "1 marked" in output


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
    assert run_prepare_data(root)[0]
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
    assert (code, output.count(f"error: {root}/absent (given): there is no such folder")) == (2, 1)


def test_refuses_paths_without_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "other.tar").write_bytes(b"")
    with pytest.raises(DataError, match="is not an archive of ImageNet"):
        run_prepare_data(tmp_path / "other.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no class folders in it"):
        run_prepare_data(tmp_path / "empty")


@pytest.mark.parametrize(
    "name", ["a b", "a=b", 'a"b', "it's #1, [x]", "\\", "$HOME", "caf\u00e9", "a,b"]
)
def test_the_printed_command_runs_for_any_path(tmp_path: Path, name: str) -> None:
    assert run_command(run_prepare_data(imagenets.folders(tmp_path / name))[1]) == [12, 6]


def test_what_training_refuses_is_not_advised(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    shutil.rmtree(root / "val" / "n02105855")
    usable, output = run_prepare_data(root)
    assert not usable and "use:" not in output
    assert "train.py refuses these data: The classes of train and val differ; only in" in output


def test_a_data_set_in_a_folder_named_train(tmp_path: Path) -> None:
    """Its sets are no classes; the advice finds them."""
    inner = imagenets.folders(tmp_path / "a b" / "train")
    usable, output = run_prepare_data(tmp_path / "a b")
    advice = shlex.split(output.splitlines()[-1])
    assert not usable and "use:" not in output and advice[-1] == str(inner)
    assert run_command(run_prepare_data(Path(advice[-1]))[1]) == [12, 6]


def test_a_single_set_is_printed_as_an_option(tmp_path: Path) -> None:
    only = imagenets.folders(tmp_path / "a b") / "train"
    usable, output = run_prepare_data(only)
    assert usable and shlex.quote(f'data.train="{only}"') in output


def test_broken_links_pipes_and_folders_are_listed(tmp_path: Path) -> None:
    """Broken images can be marked. Broken folders and links in their place cannot."""
    root = imagenets.folders(tmp_path)
    folder = root / "train" / "n01440764"
    (folder / "dangling.jpg").symlink_to(tmp_path / "gone")
    (folder / "circular.jpg").symlink_to(folder / "circular.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    with pytest.raises(DataError, match=r"circular\.jpg cannot be read: .* --mark"):
        open_folders(root)
    usable, output = run_prepare_data(root)
    assert not usable and output.count("  bad: ") == 4
    for name in ("dangling", "circular", "device", "pipe"):
        assert f"bad: {folder}/{name}" in output
    assert run_prepare_data(root, mark=True)[0]
    assert len(open_folders(root).train) == 12
    links = [root / "train" / "n00000001", folder / "more", root / "val" / "n01440764" / "loop"]
    for link in links:
        link.symlink_to(link if link.name == "loop" else tmp_path / "gone")
    usable, output = run_prepare_data(root, mark=True)
    assert not usable and "use:" not in output
    assert all(f"  bad: {link}: a link that leads nowhere" in output for link in links)
    with pytest.raises(DataError, match=r"leads nowhere.*n00000001"):
        open_folders(root)


@pytest.mark.parametrize("unreadable", [".", "train", "train/cat"])
def test_unreadable_folders_are_listed(unreadable: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o1777)
        files = {
            f"{split}/{cls}/1.jpg": jpeg(0) for split in ("train", "val") for cls in ("cat", "eel")
        }
        imagenets.write(files, root)
        with read_only(root / unreadable, 0):
            try:
                usable, output = run_prepare_data(root, verify=False)
            except DataError as error:
                usable, output = False, str(error)
        assert not usable and "Permission denied" in output and "use:" not in output


def test_what_is_passed_over_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = imagenets.folders(tmp_path)
    hidden = {f"{name}/1.jpg": jpeg(0) for name in (".ipynb_checkpoints", "@eaDir")}
    imagenets.write(hidden, root / "train")
    imagenets.write(hidden, root / "train" / "n01440764")
    others = {f"{i}.gif": b"GIF89a" for i in range(10)}
    imagenets.write(others | {"a.txt": b""}, root / "val" / "n01440764")
    notes = [
        "hidden and left out: .ipynb_checkpoints, @eaDir",
        "no images by their extension, passed over: 10 .gif, 1 .txt",
    ]
    assert len(open_folders(root).train) == 12
    assert all(note in caplog.text for note in notes)
    usable, output = run_prepare_data(root)
    assert usable and all(f"  {note}\n" in output for note in notes)


def test_modes_that_lose_their_range_are_bad(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    deep = np.arange(400, dtype=np.uint16).reshape(20, 20) * 100
    for name, pixels in {"16.png": deep, "float.tiff": deep.astype(np.float32)}.items():
        Image.fromarray(pixels).save(root / "train" / "n01440764" / name)
    _, output = run_prepare_data(root)
    assert output.count("has more than 8 bits, which RGB would cut off at 255") == 2


def test_contents_are_part_of_the_fingerprint_once_they_were_read(tmp_path: Path) -> None:
    root = imagenets.folders(tmp_path)
    before = open_folders(root).fingerprint["train"]
    assert "contents" not in before
    run_prepare_data(root)
    prepared = open_folders(root).fingerprint["train"]
    assert prepared.pop("contents") and prepared == before
    photo = root / "train" / "n01443537" / "n01443537_9.JPEG"
    photo.write_bytes(bytes(reversed(photo.read_bytes())))  # of the same size
    with pytest.raises(DataError, match=r"_9\.JPEG has other contents than when its index was"):
        [open_folders(root).train[0, i] for i in range(12)]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Such as Latin-1 names from an old zip: whatever is written can be printed and read."""
    root = imagenets.folders(tmp_path)
    for split in ("train", "val"):
        (root / split / os.fsdecode(b"caf\xe9")).mkdir()
        for name in (b"1.jpg", b"\xe9.jpg"):
            (root / split / os.fsdecode(b"caf\xe9/" + name)).write_bytes(jpeg(0))
    (root / "train" / os.fsdecode(b"caf\xe9/\xe9.jpg")).write_text("no image")
    usable, output = run_prepare_data(root, mark=True)
    assert usable and "train/caf\\xe9/\\xe9.jpg: unknown image format" in output
    data = open_folders(root)
    assert data.fingerprint["train"]["left_out"] == ["\\xe9.jpg"]
    json.dumps([output, data.fingerprint, data.classes], ensure_ascii=False).encode()
    (root / "train" / os.fsdecode(b"caf\xe9/1.jpg")).write_text("no image")
    with pytest.raises(DataError, match=r"caf\\xe9/1\.jpg") as caught:
        [open_folders(root).train[0, i] for i in range(13)]
    str(caught.value).encode()
