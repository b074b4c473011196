"""List the samples of a folder or an archive in any of ImageNet's layouts."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import read_val_labels
from sn_imagenet.data.index import Index, build_index

# As in torchvision, whose import takes seconds.
# fmt: off
IMG_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)
# fmt: on
# Folders of file managers and archives.
_HIDDEN = ("@eaDir", "__MACOSX", "lost+found")
UNREADABLE = -1  # size of an image that is no regular file or a link that leads nowhere


class UnreadableError(OSError):
    """Folders or links that cannot be followed: ``problems``, an OSError each."""

    def __init__(self, problems: list[OSError]) -> None:
        super().__init__(*problems[0].args)
        self.filename, self.problems = problems[0].filename, problems


class _Found:
    """What a scan has found: rows of images, and what it passed over."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.hidden: list[str] = []
        self.others: Counter[str] = Counter()
        self.problems: list[OSError] = []

    def is_visible(self, name: str) -> bool:
        """Whether to look at a file or folder; notes it if not."""
        if name.startswith(".") or name in _HIDDEN:
            self.hidden.append(name)
            return False
        return True

    def is_image(self, name: str) -> bool:
        """Whether a visible file is an image by its extension; notes it if not."""
        if name.lower().endswith(IMG_EXTENSIONS):
            return True
        self.others[os.path.splitext(name)[1] or name] += 1
        return False

    def sizes(self, folder: str, names: list[str]) -> Iterator[tuple[str, int]]:
        """(name, size in bytes) of the images among the files ``names`` in ``folder``."""
        for name in filter(self.is_visible, names):
            path = os.path.join(folder, name)
            if not os.path.exists(path) and not name.lower().endswith(IMG_EXTENSIONS):
                self.problems.append(_dangling(path))
            elif self.is_image(name):
                try:
                    status = os.stat(path)
                except OSError:
                    yield name, UNREADABLE
                else:
                    yield name, status.st_size if stat.S_ISREG(status.st_mode) else UNREADABLE

    def members(self, tar: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, int, int]]:
        """(name, size in bytes, offset) of the images in an archive."""
        for member in tar:
            name = os.path.basename(member.name)
            if member.isfile() and self.is_image(name):
                yield name, member.size, member.offset_data

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over, one line each."""
        others = [f"{count} {extension}" for extension, count in sorted(self.others.items())]
        lines = {
            "hidden and left out": sorted(set(self.hidden)),
            "no images by their extension, passed over": others,
        }
        return tuple(f"{line}: {shorten_list(names)}" for line, names in lines.items() if names)


def scan_class_folders(folder: Path, option: str) -> Index:
    """One folder per class, with images at any depth. Follows links.

    Raises:
        DataError: no class folders in it, a class folder without an image, or a folder that is
            reached twice.
    """
    found = _Found()
    entries = [name for name in sorted(os.listdir(folder)) if found.is_visible(name)]
    classes = [name for name in entries if (folder / name).is_dir()]
    links = [folder / name for name in entries if not (folder / name).exists()]
    found.problems = [_dangling(str(link)) for link in links]
    if not classes and not links:
        raise DataError(
            f"{folder} ({option}) has no class folders in it. Expected one folder per class "
            "with that class's images."
        )
    visited = {_inode(folder): str(folder)}
    for name in progress(classes, f"listing {folder}", unit=" classes"):
        walk = os.walk(folder / name, onerror=found.problems.append, followlinks=True)
        for here, below, files in walk:
            below[:] = filter(found.is_visible, below)
            if (other := visited.setdefault(_inode(here), here)) != here:
                raise DataError(
                    f"{here} and {other} are the same folder, so its images would count twice. "
                    "Remove the link."
                )
            inner = here[len(str(folder / name)) :].lstrip("/")
            found.rows.extend(
                (name, os.path.join(inner, file), size) for file, size in found.sizes(here, files)
            )
    if found.problems:
        raise UnreadableError(found.problems)
    folders = [os.path.relpath(path, folder) for path in visited.values()]
    if empty := sorted(set(classes) - {row[0] for row in found.rows}):
        raise DataError(
            f"{folder} ({option}) has no image files in class folder {shorten_list(empty)}. Remove "
            f"the empty folder or add images ({', '.join(IMG_EXTENSIONS)})."
        )
    return build_index(folder, found.rows, folders, notes=found.notes)


def scan_flat_folder(folder: Path) -> Index:
    """Validation images in one folder, whose classes are in another file."""
    labels, found = read_val_labels(folder), _Found()
    sizes = found.sizes(str(folder), os.listdir(folder))
    rows = [(labels.wnid(name), name, size) for name, size in sizes]
    if found.problems:
        raise UnreadableError(found.problems)
    scanned = [".", os.path.relpath(labels.path, folder)]
    return build_index(folder, rows, scanned, flat=True, notes=found.notes)


def scan_tar_of_tars(archive: Path) -> Index:
    """ILSVRC2012_img_train.tar, which holds one tar per class, named by the class.

    Raises:
        DataError: the archive is damaged or has other contents.
    """
    found = _Found()
    with _open_tar(archive) as outer:
        for member in progress(outer, f"listing {archive.name}", unit=" classes"):
            wnid, extension = os.path.splitext(os.path.basename(member.name))
            inner = outer.extractfile(member)
            if extension != ".tar" or inner is None:
                raise DataError(
                    f"{archive} holds {member.name}: expected one tar per class, as in "
                    "ILSVRC2012_img_train.tar."
                )
            with _open_tar(archive, inner) as images:
                found.rows.extend(
                    (wnid, name, size, member.offset_data + offset)
                    for name, size, offset in found.members(images)
                )
    return _tar_index(archive, found)


def scan_tar_of_images(archive: Path) -> Index:
    """The images of ILSVRC2012_img_val.tar, whose classes are in another file.

    Raises:
        DataError: the archive is damaged or has other contents.
    """
    labels, found = read_val_labels(archive), _Found()
    with _open_tar(archive) as images:
        members = found.members(progress(images, f"listing {archive.name}", unit=" images"))
        found.rows = [(labels.wnid(name), name, size, offset) for name, size, offset in members]
    return _tar_index(archive, found, os.path.relpath(labels.path, archive))


def shorten_list(names: Iterable[str], most: int = 5) -> str:
    """Join names for a message: 'a, b, c' or 'a, b, c, d, e and 7 more'."""
    listed = list(names)
    text = ", ".join(listed[:most])
    return text if len(listed) <= most else f"{text} and {len(listed) - most} more"


def _dangling(path: str) -> OSError:
    return FileNotFoundError(errno.ENOENT, "a link that leads nowhere", path)


def _inode(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


# Shown only on a terminal, and only after 2 s.
progress = partial(tqdm, delay=2, disable=None)


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


def _tar_index(archive: Path, found: _Found, *scanned: str) -> Index:
    ends = (offset + size for *_, size, offset in found.rows)
    if max(ends, default=0) > archive.stat().st_size:
        raise _damaged_archive(archive, "it ends early")
    return build_index(archive, found.rows, [".", *scanned], notes=found.notes)
