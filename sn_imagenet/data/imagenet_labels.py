"""The classes of ImageNet's validation set, whose images do not tell them by their place."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from scipy.io import loadmat

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import Listing
from sn_imagenet.data.scanning import Truth

DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# As published in val.txt files with WNIDs (and as classes 65, 970, 230, 809 of the sorted 1,000).
KNOWN = {
    "ILSVRC2012_val_00000001.JPEG": "n01751748",
    "ILSVRC2012_val_00000002.JPEG": "n09193705",
    "ILSVRC2012_val_00000003.JPEG": "n02105855",
    "ILSVRC2012_val_00000004.JPEG": "n04263257",
}


def find_truth(folders: list[Path]) -> tuple[Truth, Path] | None:
    """The first of Kaggle's solution and the devkit (an archive or unpacked) that lies in one of
    ``folders``: what it says, and the file that says it.

    Raises:
        DataError: it is there and not what it should be.
    """
    for folder in folders:
        for name, read in (
            (SOLUTION, _read_solution),
            (f"{DEVKIT}.tar.gz", _read_devkit_archive),
            (f"{DEVKIT}/data/meta.mat", _read_devkit_folder),
        ):
            path = folder / name
            if path.exists():
                try:
                    return read(path), path
                except OSError:
                    raise
                except Exception as error:  # scipy, tarfile and csv raise errors of many types
                    raise DataError(
                        f"{path} does not tell the classes of the validation set as ImageNet's "
                        f"does ({error}). Fetch it anew."
                    ) from error
    return None


def _read_solution(path: Path) -> Truth:
    """Kaggle's: ``ImageId,PredictionString``; the latter begins with the WNID."""
    with open(path, newline="") as file:
        table = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    return _lookup(lambda name: table[name.removesuffix(".JPEG")], path)


def _read_devkit_archive(path: Path) -> Truth:
    with tarfile.open(path) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(f"{DEVKIT}/data/{name}")
            assert file is not None, "a regular file, since it is found by its name"
            return file.read()

        return _devkit(read, path)


def _read_devkit_folder(path: Path) -> Truth:
    return _devkit(lambda name: (path.parent / name).read_bytes(), path)


def _devkit(read: Callable[[str], bytes], path: Path) -> Truth:
    """Line k of the ground truth is the ``ILSVRC2012_ID`` of image k. The IDs are the devkit's own
    order of classes, by no means that of the sorted WNIDs; meta.mat tells which is which."""
    synsets = loadmat(io.BytesIO(read("meta.mat")), squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    ids = [int(line) for line in read("ILSVRC2012_validation_ground_truth.txt").split()]

    def wnid(name: str) -> str:
        numbered = _NUMBERED.fullmatch(name)
        if numbered is None or int(numbered[1]) == 0:
            raise KeyError(name)
        return wnids[ids[int(numbered[1]) - 1]]

    return _lookup(wnid, path)


def _lookup(wnid: Callable[[str], str], path: Path) -> Truth:
    def truth(name: str) -> str:
        try:
            return wnid(name)
        except (KeyError, IndexError):
            raise DataError(f"{path} does not tell the class of {name}.") from None

    return truth


def check_known(listing: Listing) -> None:
    """That images of ImageNet's validation set have the labels known of them: with a wrong order
    a network trains well and evaluates at chance.

    Raises:
        DataError: one has not.
    """
    for name, wnid in KNOWN.items():
        if wnid in listing.classes:
            for label in listing.labels[listing.names == name.encode()].tolist():
                if listing.classes[label] != wnid:
                    raise DataError(
                        f"{listing.origin}: {name} is of class {listing.classes[label]}, but "
                        f"ImageNet's is of {wnid}. The labels of the validation set are not in "
                        "the order of its images."
                    )
