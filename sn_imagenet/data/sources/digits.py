"""The 1,797 handwritten digits that scikit-learn bundles."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from sn_imagenet.config import DataConfig
from sn_imagenet.data.arrays import ArraySource

READS = ()
VAL_SAMPLES = 400


def open_source(data: DataConfig) -> tuple[ArraySource, ArraySource]:
    """The digits (8x8, values 0 to 16) as three equal channels in [0, 1], enlarged bilinearly to
    ``data.image_size``: 1,397 for training, 400 for validation, stratified, the same split for
    every seed of a run."""
    # Here, because importing it takes seconds, which not every use of this module should pay for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    numbers = np.arange(len(bunch.target))
    train, val = train_test_split(
        numbers, test_size=VAL_SAMPLES, stratify=bunch.target, random_state=0
    )
    classes = tuple(str(name) for name in bunch.target_names)

    def part(chosen: np.ndarray) -> ArraySource:
        chosen = np.sort(chosen)
        raw = bunch.images[chosen].astype(np.uint8)
        labels = bunch.target[chosen].astype(np.int64)
        small = torch.from_numpy(raw)[:, None].float() / 16
        large = F.interpolate(small, size=(data.image_size, data.image_size), mode="bilinear")
        # Known by the pixels as they were scanned: the enlarged ones may differ by rounding
        # elsewhere.
        return ArraySource(large.repeat(1, 3, 1, 1), labels, classes, stored=raw)

    return part(train), part(val)
