"""ImageNet-1k, in any of its layouts."""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.imagenet_labels import IMAGENET_CLASSES
from sn_imagenet.data.indexed import IndexedSource
from sn_imagenet.data.layouts import find_imagenet, open_splits

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
    splits = find_imagenet(root)
    for name in ("training", "validation"):
        if name not in splits:
            raise DataError(f"ImageNet is required, but {root} has no {name} set. {alternative}")
    train, val = open_splits(splits["training"], splits["validation"])
    if len(train.classes) != IMAGENET_CLASSES:
        raise DataError(
            f"{root} has {len(train.classes)} classes, but ImageNet-1k has {IMAGENET_CLASSES}. For "
            "another set of classes use data=imagefolder data.train=DIR data.val=DIR."
        )
    return train, val
