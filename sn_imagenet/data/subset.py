"""Subsets of a data set for small studies: data.classes and data.subset."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.seeding import derive_seed
from sn_imagenet.data.sources import Sample, Source


class SubsetSource:
    """The samples ``indices`` (int64 [n], ascending) of ``source``, with labels that index
    ``classes``."""

    def __init__(self, source: Source, indices: np.ndarray, classes: tuple[str, ...]) -> None:
        self.source = source
        self.indices = indices
        self.classes = classes
        old = source.labels[indices]
        new_label = {name: label for label, name in enumerate(classes)}
        self.labels = np.array([new_label[source.classes[label]] for label in old], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> Sample:
        sample = self.source.open(int(self.indices[index]))
        return sample._replace(label=int(self.labels[index]))

    def location(self, index: int) -> str:
        return self.source.location(int(self.indices[index]))

    def fingerprint(self) -> dict[str, Any]:
        """Over the fingerprint of the whole source and the indices of the subset."""
        parent = self.source.fingerprint()
        digest = hashlib.sha256(parent["sha256"].encode() + self.indices.astype("<i8").tobytes())
        return {**parent, "samples": len(self), "sha256": digest.hexdigest()}


def select_subset(data: DataConfig, train: Source, val: Source) -> tuple[Source, Source]:
    """Select ``data.classes`` classes of both splits and, of each class, the fraction
    ``data.subset`` (at least one sample) of the training set and all of the validation set.

    The selection does not depend on the run's seed. A larger subset contains the smaller ones.

    Raises:
        DataError: there are fewer classes.
    """
    if data.classes is None and data.subset is None:
        return train, val
    total = len(train.classes)
    num_classes = data.classes or total
    if num_classes > total:
        raise DataError(f"data.classes={num_classes}: the data set has {total}")
    ranked = sorted(range(total), key=lambda label: derive_seed("classes", label))
    labels = np.sort(ranked[:num_classes])
    classes = tuple(train.classes[label] for label in labels)
    return (
        SubsetSource(train, _select_samples(train, labels, data.subset or 1.0), classes),
        SubsetSource(val, _select_samples(val, labels, 1.0), classes),
    )


def split_source(source: Source, fraction: float) -> tuple[SubsetSource, SubsetSource]:
    """The source without ``fraction`` of each class's samples (at least one), and these samples."""
    chosen = _select_samples(source, np.arange(len(source.classes)), fraction)
    others = np.setdiff1d(np.arange(len(source)), chosen)
    first, second = (SubsetSource(source, part, source.classes) for part in (others, chosen))
    return first, second


def _select_samples(source: Source, labels: np.ndarray, fraction: float) -> np.ndarray:
    indices = []
    for label in labels.tolist():
        samples = np.flatnonzero(source.labels == label).tolist()
        count = math.ceil(fraction * len(samples))
        if count < len(samples):
            samples = sorted(samples, key=lambda sample: derive_seed("subset", sample))[:count]
        indices.extend(samples)
    return np.sort(np.array(indices, dtype=np.int64))
