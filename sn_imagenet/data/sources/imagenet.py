"""ImageNet-1k in class folders."""

from __future__ import annotations

import os
from pathlib import Path

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.folders import FolderSource, require_same_classes

READS = ("root",)
CLASSES = 1000


def open_source(data: DataConfig) -> tuple[FolderSource, FolderSource]:
    """ImageNet-1k: ``data.root``/train and ``data.root``/val with 1,000 WNID folders each.

    Raises:
        DataError: it is not there, val/ is not sorted into classes, or the classes are not 1,000.
    """
    alternative = (
        "Set data.root=DIR or IMAGENET_ROOT to the folder that holds train/ and val/; to try the "
        "framework without ImageNet, use the embedded digits: data=digits model=resnet50_mini."
    )
    if not data.root:
        raise DataError(f"ImageNet is needed, and no data.root is given. {alternative}")
    folder = Path(data.root).expanduser()
    for part in (folder, folder / "train", folder / "val"):
        if not part.is_dir():
            raise DataError(f"ImageNet is needed, and {part} is no folder. {alternative}")
    _require_sorted_val(folder / "val")
    sources = (
        FolderSource(folder / "train", "train of data.root"),
        FolderSource(folder / "val", "val of data.root"),
    )
    for source in sources:
        count = len(source.classes)
        if count != CLASSES:
            raise DataError(
                f"{source.folder} has {count} class folders, ImageNet-1k has {CLASSES}. "
                "For another set of classes use data=imagefolder data.train=DIR data.val=DIR."
            )
    require_same_classes(*sources)
    return sources


def _require_sorted_val(val: Path) -> None:
    with os.scandir(val) as entries:
        names = [entry.name for entry in entries if not entry.is_dir()]
    flat = sum(name.startswith("ILSVRC2012_val_") for name in names)
    if flat:
        raise DataError(
            f"{val} is flat: {flat} ILSVRC2012_val_*.JPEG files lie directly in it, not in class "
            "folders. Their classes are in the ILSVRC2012 devkit's ground truth: put "
            "ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_val.tar into one empty folder DIR, "
            "run torchvision.datasets.ImageNet(DIR, split='val'), which sorts the images into "
            f"1,000 WNID folders below DIR/val, and put these in place of {val}."
        )
