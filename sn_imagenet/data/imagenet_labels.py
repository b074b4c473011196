"""Labels of ImageNet's validation images, which are published without class folders."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from sn_imagenet.data.errors import DataError

WnidLookup = Callable[[str], str]
"""Maps the file name of a validation image to its WNID."""

IMAGENET_CLASSES = 1000
DEVKIT = "ILSVRC2012_devkit_t12"
_SYNSETS, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
SOLUTION = "LOC_val_solution.csv"
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# From public val.txt files with WNIDs; classes 65, 970, 230, 809 of the sorted 1,000.
KNOWN_LABELS = {
    "ILSVRC2012_val_00000001.JPEG": "n01751748",
    "ILSVRC2012_val_00000002.JPEG": "n09193705",
    "ILSVRC2012_val_00000003.JPEG": "n02105855",
    "ILSVRC2012_val_00000004.JPEG": "n04263257",
}


def find_val_labels(folders: list[Path]) -> tuple[WnidLookup, Path] | None:
    """Read the validation labels from the first labels file in ``folders``: Kaggle's solution or
    the devkit (archive or unpacked). Returns the lookup and the file.

    Raises:
        DataError: the file exists but is not what its name says.
    """
    for folder in folders:
        for name, read in (
            (SOLUTION, _read_kaggle_solution),
            (f"{DEVKIT}.tar.gz", _read_devkit_archive),
            (f"{DEVKIT}/data/{_SYNSETS}", _read_devkit_folder),
        ):
            path = folder / name
            if path.is_file():
                try:
                    return _named(read(path), path), path
                except OSError:
                    raise
                except Exception as error:  # scipy, tarfile and csv raise errors of many types
                    raise DataError(
                        f"{path} does not hold the validation labels in ImageNet's format "
                        f"({error}). Download it again."
                    ) from error
    return None


def _read_kaggle_solution(path: Path) -> WnidLookup:
    """Columns ``ImageId,PredictionString``; the latter begins with the WNID."""
    with open(path, newline="") as file:
        table = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    return lambda name: table[name.removesuffix(".JPEG")]


def _read_devkit_archive(path: Path) -> WnidLookup:
    with tarfile.open(path) as tar:
        members = (tar.extractfile(f"{DEVKIT}/data/{name}") for name in (_SYNSETS, _TRUTH))
        return _read_devkit(*(member.read() for member in members if member))


def _read_devkit_folder(path: Path) -> WnidLookup:
    return _read_devkit(path.read_bytes(), path.with_name(_TRUTH).read_bytes())


def _read_devkit(synsets_file: bytes, truth: bytes) -> WnidLookup:
    """Line k of the ground truth is the ``ILSVRC2012_ID`` of image k. These IDs follow the devkit's
    own order of classes, not the sorted WNIDs; meta.mat maps IDs to WNIDs."""
    synsets = loadmat(io.BytesIO(synsets_file), squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    ids = [int(line) for line in truth.split()]

    def wnid(name: str) -> str:
        match = _VAL_IMAGE.fullmatch(name)
        if match is None or int(match[1]) == 0:
            raise KeyError(name)
        return wnids[ids[int(match[1]) - 1]]

    return wnid


def _named(wnid: WnidLookup, path: Path) -> WnidLookup:
    def wnid_of(name: str) -> str:
        try:
            return wnid(name)
        except (KeyError, IndexError):
            raise DataError(f"{path} has no label for {name}.") from None

    return wnid_of


def check_known_labels(origin: Path, rows: list[Any]) -> None:
    """Check the classes of a few known validation images among rows (class, file name, ...). If
    labels and images are in different orders, a network trains well and evaluates at chance.

    Raises:
        DataError: a known image has another class, and its own is among the classes.
    """
    wrong = [row for row in rows if row[0] != KNOWN_LABELS.get(row[1], row[0])]
    classes = {row[0] for row in rows} if wrong else set()
    for found, name, *_ in wrong:
        if KNOWN_LABELS[name] in classes:
            raise DataError(
                f"{origin}: {name} has class {found}, but {KNOWN_LABELS[name]} in ImageNet. The "
                "validation labels are not in the order of the images."
            )
