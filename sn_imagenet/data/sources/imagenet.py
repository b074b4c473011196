"""ImageNet-1k, in any of its layouts."""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import IMAGENET_CLASSES
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.layouts import (
    class_differences,
    find_imagenet_train,
    find_imagenet_val,
    require_same_classes,
)

PATH_OPTIONS = ("root",)


def open_source(data: DataConfig) -> tuple[IndexedSource, IndexedSource]:
    """Open the training and the validation set in ``data.root``, in a layout of layouts.py.

    Raises:
        DataError: a split or val's labels are missing, or there are not 1,000 classes.
    """
    alternative = (
        "Set data.root=DIR or IMAGENET_ROOT to the folder that has train/ and val/, ImageNet's "
        "tar archives, Kaggle's ILSVRC/ or Hugging Face's parquet files. To try the framework "
        "without ImageNet, use the bundled digits: data=digits model=resnet50_mini."
    )
    if not data.root:
        raise DataError(f"ImageNet is required, but data.root is not set. {alternative}")
    root = Path(data.root).expanduser()
    splits = {"training": find_imagenet_train(root), "validation": find_imagenet_val(root)}
    indices = []
    for name, split in splits.items():
        if split is None:
            raise DataError(f"ImageNet is required, but {root} has no {name} set. {alternative}")
        indices.append(split.open())
    for index in indices:
        if len(index.classes) != IMAGENET_CLASSES:
            differences = class_differences(*indices)
            raise DataError(
                f"{index.origin} has {len(index.classes)} classes, but ImageNet-1k has "
                f"{IMAGENET_CLASSES}{'; ' if differences else ''}{differences}. "
                "For another set of classes use data=imagefolder data.train=DIR data.val=DIR."
            )
    require_same_classes(*indices)
    train, val = map(IndexedSource, indices)
    return train, val
