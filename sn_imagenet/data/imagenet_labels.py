"""Labels of ImageNet's validation images, which are published without class folders."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from scipy.io import loadmat

from sn_imagenet.data.errors import DataError

IMAGENET_CLASSES = 1000
_DEVKIT = "ILSVRC2012_devkit_t12"
_SYNSETS, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_SOLUTION = "LOC_val_solution.csv"
# From public val.txt files with WNIDs; classes 65, 970, 230, 809 of the sorted 1,000.
KNOWN_LABELS = {
    "ILSVRC2012_val_00000001.JPEG": "n01751748",
    "ILSVRC2012_val_00000002.JPEG": "n09193705",
    "ILSVRC2012_val_00000003.JPEG": "n02105855",
    "ILSVRC2012_val_00000004.JPEG": "n04263257",
}


class ValLabels(NamedTuple):
    """``wnids``: the WNID of each validation image by its file name, from the file ``path``."""

    path: Path
    wnids: dict[str, str]

    def wnid(self, name: str) -> str:
        """
        Raises:
            DataError: the file has no label for ``name``.
        """
        if name not in self.wnids:
            raise DataError(f"{self.path} has no label for {name}.")
        return self.wnids[name]


def read_val_labels(val: Path) -> ValLabels:
    """The labels of the images in ``val``, from the first labels file in the folders above it:
    Kaggle's solution or the devkit (archive or unpacked).

    Raises:
        DataError: there is none, or one that is not what its name says.
    """
    for folder in list(val.parents)[:4]:  # Kaggle's val/ is four folders below its solution
        for name, read in (
            (_SOLUTION, _read_kaggle_solution),
            (f"{_DEVKIT}.tar.gz", _read_devkit_archive),
            (f"{_DEVKIT}/data/{_SYNSETS}", _read_devkit_folder),
        ):
            path = folder / name
            if path.is_file():
                try:
                    return ValLabels(path, read(path))
                except OSError:
                    raise
                except Exception as error:  # scipy, tarfile and csv raise errors of many types
                    raise DataError(
                        f"{path} does not hold the validation labels in ImageNet's format "
                        f"({error}). Download it again."
                    ) from error
    raise DataError(
        f"{val} has no labels for its images. They are in ImageNet's devkit: put {_DEVKIT}.tar.gz "
        f"(or Kaggle's {_SOLUTION}) into {val.parent}."
    )


def _read_kaggle_solution(path: Path) -> dict[str, str]:
    """Columns ``ImageId,PredictionString``; the latter begins with the WNID."""
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        return {f"{row['ImageId']}.JPEG": row["PredictionString"].split()[0] for row in rows}


def _read_devkit_archive(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        members = (tar.extractfile(f"{_DEVKIT}/data/{name}") for name in (_SYNSETS, _TRUTH))
        return _read_devkit(*(member.read() for member in members if member))


def _read_devkit_folder(path: Path) -> dict[str, str]:
    return _read_devkit(path.read_bytes(), path.with_name(_TRUTH).read_bytes())


def _read_devkit(synsets_file: bytes, truth: bytes) -> dict[str, str]:
    """Line k of the ground truth is the ``ILSVRC2012_ID`` of image k. These IDs follow the devkit's
    own order of classes, not the sorted WNIDs; meta.mat maps IDs to WNIDs."""
    synsets = loadmat(io.BytesIO(synsets_file), squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    ids = map(int, truth.split())
    return {f"ILSVRC2012_val_{k:08d}.JPEG": wnids[i] for k, i in enumerate(ids, start=1)}


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
