"""ImageNet-1k, in whichever of its layouts it lies."""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.index import Index
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.layouts import imagenet_train, imagenet_val, require_same_classes
from sn_imagenet.data.scanning import some

READS = ("root",)
CLASSES = 1000


def open_source(data: DataConfig) -> tuple[IndexedSource, IndexedSource]:
    """The training and the validation set below ``data.root``; layouts.py says in which forms.

    Raises:
        DataError: they are not there, nothing tells the classes of val, or these are not 1,000.
    """
    alternative = (
        "Set data.root=DIR or IMAGENET_ROOT to the folder that holds train/ and val/, ImageNet's "
        "tar archives, Kaggle's ILSVRC/ or Hugging Face's parquet files; to try the framework "
        "without ImageNet, use the embedded digits: data=digits model=resnet50_mini."
    )
    if not data.root:
        raise DataError(f"ImageNet is needed, and no data.root is given. {alternative}")
    root = Path(data.root).expanduser()
    parts = {"training": imagenet_train(root), "validation": imagenet_val(root)}
    indices = []
    for name, part in parts.items():
        if part is None:
            raise DataError(f"ImageNet is needed, and {root} holds no {name} set. {alternative}")
        indices.append(part.open())
    train, val = indices
    _require_all_classes(train, other=val)
    _require_all_classes(val, other=train)
    require_same_classes(train, val)
    return IndexedSource(train), IndexedSource(val)


def _require_all_classes(index: Index, other: Index) -> None:
    classes = index.listing.classes
    if len(classes) != CLASSES:
        only = [
            f"; only in {one.listing.origin}: {some(names)}"
            for one, another in ((index, other), (other, index))
            if (names := sorted(set(one.listing.classes) - set(another.listing.classes)))
        ]
        raise DataError(
            f"{index.listing.origin} has {len(classes)} classes, ImageNet-1k has "
            f"{CLASSES}{''.join(only)}. "
            "For another set of classes use data=imagefolder data.train=DIR data.val=DIR."
        )
