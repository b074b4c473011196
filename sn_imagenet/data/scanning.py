"""Lists the samples of a folder or an archive, in whichever of ImageNet's layouts they lie."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import Listing

# torchvision's; importing it takes seconds.
# fmt: off
IMG_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)
# fmt: on
T = TypeVar("T")
Truth = Callable[[str], str]
"""The class of an image of the validation set, by its file's name."""


def class_folders(folder: Path, option: str) -> Listing:
    """One folder per class, images at any depth below; links are followed.

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
    seen = {_identity(folder): str(folder)}
    found: list[tuple[int, str, int]] = []
    folders = ["."]
    empty = []
    for label, name in enumerate(_progress(classes, f"listing {folder}", " classes")):
        before = len(found)
        for inner, images in _walk(folder / name, "", seen):
            folders.append(os.path.join(name, inner))
            found.extend((label, image, size) for image, size in images)
        if len(found) == before:
            empty.append(name)
    if empty:
        raise DataError(
            f"{folder} ({option}) has no image files in class folder {some(empty)}. Remove "
            f"the empty folder or add images ({', '.join(IMG_EXTENSIONS)})."
        )
    return _listing(folder, classes, found, sources=folders)


def flat_folder(folder: Path, truth: Truth, truth_file: Path) -> Listing:
    """Images in one folder; ``truth``, read from ``truth_file``, tells their classes."""
    with os.scandir(folder) as entries:
        images = [(e.name, e.stat().st_size) for e in entries if _is_image(e.name)]
    named = [(truth(name), name, size) for name, size in images]
    return _listing(folder, None, named, flat=True, sources=[".", _from(folder, truth_file)])


def tar_of_tars(archive: Path) -> Listing:
    """ILSVRC2012_img_train.tar: one tar per class in it, named by the class.

    Raises:
        DataError: it is damaged, or something else.
    """
    found: list[tuple[str, str, int, int]] = []
    with _tar(archive) as outer:
        for member in _progress(outer, f"listing {archive.name}", " classes"):
            name, extension = os.path.splitext(os.path.basename(member.name))
            inner = outer.extractfile(member)
            if extension != ".tar" or inner is None:
                raise DataError(
                    f"{archive} holds {member.name}: expected one tar for each class in it, as in "
                    "ILSVRC2012_img_train.tar."
                )
            with _tar(archive, inner) as images:
                found.extend(
                    (name, os.path.basename(i.name), i.size, member.offset_data + i.offset_data)
                    for i in images
                    if i.isfile() and _is_image(i.name)
                )
    return _listing(archive, None, found)


def tar_of_images(archive: Path, truth: Truth, truth_file: Path) -> Listing:
    """ILSVRC2012_img_val.tar: the images in it; ``truth``, read from ``truth_file``, tells their
    classes.

    Raises:
        DataError: it is damaged, or something else.
    """
    found = []
    with _tar(archive) as images:
        for image in _progress(images, f"listing {archive.name}", " images"):
            if image.isfile() and _is_image(image.name):
                name = os.path.basename(image.name)
                found.append((truth(name), name, image.size, image.offset_data))
    return _listing(archive, None, found, sources=[".", _from(archive, truth_file)])


def some(names: Iterable[str], most: int = 5) -> str:
    """'a, b, c' or 'a, b, c, d, e and 7 more'."""
    listed = list(names)
    text = ", ".join(listed[:most])
    return text if len(listed) <= most else f"{text} and {len(listed) - most} more"


def _walk(
    folder: Path, inner: str, seen: dict[tuple[int, int], str]
) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """(the folder below the class's, its images: name below the class's, size), all folders."""
    here = folder / inner
    identity = _identity(here)
    if identity in seen:
        raise DataError(
            f"{here} and {seen[identity]} are the same folder: its images would be counted twice. "
            "Remove the link."
        )
    seen[identity] = str(here)
    images, below = [], []
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.is_dir():
                below.append(os.path.join(inner, entry.name))
            elif _is_image(entry.name):
                images.append((os.path.join(inner, entry.name), entry.stat().st_size))
    yield inner, images
    for name in below:
        yield from _walk(folder, name, seen)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _from(origin: Path, path: Path) -> str:
    return os.path.relpath(path, origin)


def _progress(items: Iterable[T], what: str, unit: str) -> Iterable[T]:
    # On a terminal alone, and only where it takes long.
    bar: Iterable[T] = tqdm(items, what, unit=unit, delay=2, disable=None)
    return bar


@contextmanager
def _tar(archive: Path, inner: Any = None) -> Iterator[tarfile.TarFile]:
    """``archive``, or the one at ``inner`` within it."""
    try:
        # "r:" takes no compressed one, in which a file would have no place of its own.
        with tarfile.open(archive if inner is None else None, "r:", fileobj=inner) as tar:
            yield tar
    except tarfile.TarError as error:
        raise _damaged(archive, f"{error}") from error


def _damaged(archive: Path, reason: str) -> DataError:
    return DataError(f"{archive} is no whole tar archive ({reason}). Fetch it anew.")


def _listing(
    origin: Path,
    classes: list[str] | None,
    found: list[tuple[Any, ...]],
    *,
    flat: bool = False,
    sources: Iterable[str] = (".",),
) -> Listing:
    """Of rows (label, or class where ``classes`` is None; name; size; offset in an archive)."""
    if not found:
        raise DataError(f"{origin} holds no image.")
    columns = list(zip(*found, strict=True))
    if classes is None:
        classes = sorted(set(columns[0]))
        label = {name: i for i, name in enumerate(classes)}
        columns[0] = tuple(label[name] for name in columns[0])
    offsets = np.array(columns[3], dtype=np.int64) if len(columns) > 3 else None
    sizes = np.array(columns[2], dtype=np.int64)
    if offsets is not None and (offsets + sizes).max() > origin.stat().st_size:
        raise _damaged(origin, "it ends early")
    return Listing(
        origin,
        tuple(classes),
        labels=np.array(columns[0], dtype=np.int64),
        names=np.array([os.fsencode(name) for name in columns[1]]),
        sizes=sizes,
        offsets=offsets,
        flat=flat,
        sources=tuple(sources),
    )
