"""data.subset and data.classes: stratified, independent of the seed, and nested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_configs import PLAIN, data_config

from sn_imagenet.config import DataConfig
from sn_imagenet.data.datasets import DataSets, build
from sn_imagenet.data.errors import DataError
from sn_imagenet.errors import ConfigError


def digits_config(**options: Any) -> DataConfig:
    return data_config("digits", image_size=16, resize_size=16, **options)


def open_subset(seed: int = 0, **options: Any) -> DataSets:
    return build(digits_config(**options), PLAIN, seed)


def ids(data: DataSets) -> set[int]:
    return set(data.train.source.indices.tolist())  # type: ignore[attr-defined]


def test_subset_takes_a_fraction_of_each_training_class() -> None:
    whole, tenth = open_subset(), open_subset(subset=0.1)
    counts = [np.bincount(d.train.source.labels) for d in (whole, tenth)]
    assert np.array_equal(counts[1], np.ceil(0.1 * counts[0]))
    assert len(tenth.val) == len(whole.val) == 400
    assert ids(tenth) == ids(open_subset(seed=5, subset=0.1)) < ids(open_subset(subset=0.3))
    sample = int(tenth.train.source.indices[7])  # type: ignore[attr-defined]
    image, label = tenth.train[0, 7]
    expected, expected_label = whole.train[0, sample]
    assert (image == expected).all() and label == expected_label
    prints = [d.fingerprint["train"] for d in (whole, tenth, open_subset(subset=0.3))]
    assert len({p["sha256"] for p in prints}) == 3
    assert prints[1]["samples"] == len(tenth.train)


def test_classes_selects_the_same_classes_of_both_splits() -> None:
    three, whole = open_subset(classes=3), open_subset()
    assert len(three.classes) == 3 and set(three.classes) < set(open_subset(classes=5).classes)
    assert three.classes == tuple(sorted(three.classes))
    for split in ("train", "val"):
        source, all_of_it = getattr(three, split).source, getattr(whole, split).source
        names = [all_of_it.classes[label] for label in all_of_it.labels[source.indices]]
        assert [three.classes[label] for label in source.labels] == names
        assert len(source) == sum(
            name in three.classes for name in map(all_of_it.classes.__getitem__, all_of_it.labels)
        )


def test_invalid_options_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.classes=11: the data set has 10"):
        open_subset(classes=11)
    for options, error in (({"subset": 0.0}, "subset=0.0: expect"), ({"classes": 1}, "classes=1")):
        with pytest.raises(ConfigError, match=error):
            digits_config(**options)
