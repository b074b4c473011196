"""Part of a data set, for pilot studies: data.classes and data.subset."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from sn_imagenet.config import DataConfig
from sn_imagenet.data.errors import DataError
from sn_imagenet.data.seeding import derive_seed
from sn_imagenet.data.sources import Sample, Source


class PartSource:
    """The samples ``chosen`` (int64 [n], ascending) of ``source``, whose labels become places in
    ``classes``."""

    def __init__(self, source: Source, chosen: np.ndarray, classes: tuple[str, ...]) -> None:
        self.source = source
        self.chosen = chosen
        self.classes = classes
        old = source.labels[chosen]
        place = {name: label for label, name in enumerate(classes)}
        self.labels = np.array([place[source.classes[label]] for label in old], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.chosen)

    def open(self, index: int) -> Sample:
        opened = self.source.open(int(self.chosen[index]))
        return opened._replace(label=int(self.labels[index]))

    def fingerprint(self) -> dict[str, Any]:
        """Of the whole's and of which samples these are of it."""
        whole = self.source.fingerprint()
        digest = hashlib.sha256(whole["sha256"].encode() + self.chosen.astype("<i8").tobytes())
        return {**whole, "samples": len(self), "sha256": digest.hexdigest()}


def choose_part(data: DataConfig, train: Source, val: Source) -> tuple[Source, Source]:
    """``data.classes`` of the classes of both, and of each of them the share ``data.subset`` of
    the training samples, at least one; all of the validation's.

    Which, does not depend on the run's seed, and a smaller part lies within a larger one.

    Raises:
        DataError: there are fewer classes.
    """
    if data.classes is None and data.subset is None:
        return train, val
    total = len(train.classes)
    wanted = data.classes or total
    if wanted > total:
        raise DataError(f"data.classes={wanted}: the data set has {total}")
    ranked = sorted(range(total), key=lambda label: derive_seed("classes", label))
    labels = np.sort(ranked[:wanted])
    classes = tuple(train.classes[label] for label in labels)
    return (
        PartSource(train, _share(train, labels, data.subset or 1.0), classes),
        PartSource(val, _share(val, labels, 1.0), classes),
    )


def _share(source: Source, labels: np.ndarray, share: float) -> np.ndarray:
    chosen = []
    for label in labels.tolist():
        samples = np.flatnonzero(source.labels == label).tolist()
        count = math.ceil(share * len(samples))
        if count < len(samples):
            samples = sorted(samples, key=lambda sample: derive_seed("subset", sample))[:count]
        chosen.extend(samples)
    return np.sort(np.array(chosen, dtype=np.int64))
