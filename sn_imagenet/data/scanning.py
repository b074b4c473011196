"""List the samples of a folder or an archive in any of ImageNet's layouts."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import WnidLookup
from sn_imagenet.data.index import Index, build_index

# As in torchvision, whose import takes seconds.
# fmt: off
IMG_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)
# fmt: on
T = TypeVar("T")


def scan_class_folders(folder: Path, option: str) -> Index:
    """One folder per class, with images at any depth. Follows links.

    Raises:
        DataError: no such folder, no class folders in it, a class folder without an image, or a
            folder that is reached twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} ({option}): there is no such folder.")
    with os.scandir(folder) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise DataError(
            f"{folder} ({option}) has no class folders in it. Expected one folder per class "
            "with that class's images."
        )
    visited = {_inode(folder): str(folder)}
    rows: list[tuple[str, str, int]] = []
    for name in progress(classes, f"listing {folder}", " classes"):
        for here, _, files in os.walk(folder / name, onerror=_fail, followlinks=True):
            if (other := visited.setdefault(_inode(here), here)) != here:
                raise DataError(
                    f"{here} and {other} are the same folder, so its images would count twice. "
                    "Remove the link."
                )
            inner = here[len(str(folder / name)) :].lstrip("/")
            rows.extend(
                (name, os.path.join(inner, file), os.stat(os.path.join(here, file)).st_size)
                for file in files
                if _is_image(file)
            )
    folders = [os.path.relpath(path, folder) for path in visited.values()]
    if empty := sorted(set(classes) - {row[0] for row in rows}):
        raise DataError(
            f"{folder} ({option}) has no image files in class folder {shorten_list(empty)}. Remove "
            f"the empty folder or add images ({', '.join(IMG_EXTENSIONS)})."
        )
    return build_index(folder, rows, folders)


def scan_flat_folder(folder: Path, wnid_of: WnidLookup, labels_file: Path) -> Index:
    """Images in one folder, with classes by ``wnid_of``, which was read from ``labels_file``."""
    with os.scandir(folder) as entries:
        images = [(e.name, e.stat().st_size) for e in entries if _is_image(e.name)]
    rows = [(wnid_of(name), name, size) for name, size in images]
    return build_index(folder, rows, [".", os.path.relpath(labels_file, folder)], flat=True)


def scan_tar_of_tars(archive: Path) -> Index:
    """ILSVRC2012_img_train.tar, which holds one tar per class, named by the class.

    Raises:
        DataError: the archive is damaged or has other contents.
    """
    rows: list[tuple[str, str, int, int]] = []
    with _open_tar(archive) as outer:
        for member in progress(outer, f"listing {archive.name}", " classes"):
            name, extension = os.path.splitext(os.path.basename(member.name))
            inner = outer.extractfile(member)
            if extension != ".tar" or inner is None:
                raise DataError(
                    f"{archive} holds {member.name}: expected one tar per class, as in "
                    "ILSVRC2012_img_train.tar."
                )
            with _open_tar(archive, inner) as images:
                rows.extend(
                    (name, os.path.basename(i.name), i.size, member.offset_data + i.offset_data)
                    for i in images
                    if i.isfile() and _is_image(i.name)
                )
    return _tar_index(archive, rows)


def scan_tar_of_images(archive: Path, wnid_of: WnidLookup, labels_file: Path) -> Index:
    """The images of ILSVRC2012_img_val.tar, with classes by ``wnid_of``, which was read from
    ``labels_file``.

    Raises:
        DataError: the archive is damaged or has other contents.
    """
    rows = []
    with _open_tar(archive) as images:
        for image in progress(images, f"listing {archive.name}", " images"):
            if image.isfile() and _is_image(image.name):
                name = os.path.basename(image.name)
                rows.append((wnid_of(name), name, image.size, image.offset_data))
    return _tar_index(archive, rows, os.path.relpath(labels_file, archive))


def shorten_list(names: Iterable[str], most: int = 5) -> str:
    """Join names for a message: 'a, b, c' or 'a, b, c, d, e and 7 more'."""
    listed = list(names)
    text = ", ".join(listed[:most])
    return text if len(listed) <= most else f"{text} and {len(listed) - most} more"


def _fail(error: OSError) -> None:
    raise error


def _inode(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def progress(items: Iterable[T], what: str, unit: str) -> Iterable[T]:
    # Shown only on a terminal, and only after 2 s.
    bar: Iterable[T] = tqdm(items, what, unit=unit, delay=2, disable=None)
    return bar


@contextmanager
def _open_tar(archive: Path, inner: Any = None) -> Iterator[tarfile.TarFile]:
    """Open ``archive``, or the tar at ``inner`` within it."""
    try:
        # "r:" rejects compressed archives, which have no offset for each file.
        with tarfile.open(archive if inner is None else None, "r:", fileobj=inner) as tar:
            yield tar
    except tarfile.TarError as error:
        raise _damaged_archive(archive, f"{error}") from error


def _damaged_archive(archive: Path, reason: str) -> DataError:
    return DataError(f"{archive} is not a complete tar archive ({reason}). Download it again.")


def _tar_index(archive: Path, rows: list[tuple[str, str, int, int]], *scanned: str) -> Index:
    if max((size + offset for *_, size, offset in rows), default=0) > archive.stat().st_size:
        raise _damaged_archive(archive, "it ends early")
    return build_index(archive, rows, [".", *scanned])
