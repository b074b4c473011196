"""The 1,797 handwritten digits that scikit-learn bundles."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from sn_imagenet.config import DataConfig
from sn_imagenet.data.arrays import ArraySource

PATH_OPTIONS = ()
VAL_SAMPLES = 400


def open_source(data: DataConfig) -> tuple[ArraySource, ArraySource]:
    """The digits (8x8, values 0 to 16) as three equal channels in [0, 1], upsampled bilinearly to
    ``data.image_size``. A stratified split, the same for every seed of a run: 1,397 for training,
    400 for validation."""
    # Imported here, because it takes seconds.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    all_indices = np.arange(len(bunch.target))
    train, val = train_test_split(
        all_indices, test_size=VAL_SAMPLES, stratify=bunch.target, random_state=0
    )
    classes = tuple(str(name) for name in bunch.target_names)

    def to_source(indices: np.ndarray) -> ArraySource:
        indices = np.sort(indices)
        original = bunch.images[indices].astype(np.uint8)
        labels = bunch.target[indices].astype(np.int64)
        small = torch.from_numpy(original)[:, None].float() / 16
        large = F.interpolate(small, size=(data.image_size, data.image_size), mode="bilinear")
        # The fingerprint uses the original pixels, because rounding of the upsampled ones may
        # differ between machines.
        return ArraySource(large.repeat(1, 3, 1, 1), labels, classes, stored=original)

    return to_source(train), to_source(val)
