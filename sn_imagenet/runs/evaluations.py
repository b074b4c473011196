"""The evaluations in a ``result.json``: how each was made, and which ones tables report.

It lists all evaluations of a run, oldest first. docs/results.md lists the entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sn_imagenet.runs.files import FINAL
from sn_imagenet.runs.reading import mapping, number
from sn_imagenet.runs.scores import TOP1, Score

EVALNORM = "evalnorm"
"""Statistics of an evaluation of batch norm that mixes stored and per-sample statistics."""


def counted_evaluations(
    evaluations: Iterable[dict[str, Any]], config: dict[str, Any], fingerprint: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Statistics -> the counted evaluation, which tables report: the first one that has no
    :func:`deviations_from_config`. A later evaluation never replaces it.

    Args:
        evaluations: the list in a ``result.json`` of version 2.
        config: the config of the run.
        fingerprint: the fingerprint of its training data.
    """
    counted: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        if not deviations_from_config(evaluation, config, fingerprint):
            counted.setdefault(str(evaluation["statistics"]), evaluation)
    return counted


def deviations_from_config(
    evaluation: dict[str, Any], config: dict[str, Any], fingerprint: dict[str, Any]
) -> list[str]:
    """How ``evaluation`` deviates from the run's config, such as ``1000 samples`` or ``last.pt``.

    Compares the checkpoint (the final one), the precision, the data and, for a batch average, the
    calibration's estimator, samples and seed. Keys that another version omits are skipped. The list
    is empty if nothing deviates.
    """
    expected, data = mapping(config.get("calibration")), mapping(evaluation.get("data"))
    actual = mapping(evaluation.get("calibration"))
    compared = [
        (actual.get("samples_requested"), expected.get("samples"), "{} samples"),
        (actual.get("estimator"), expected.get("estimator"), "{}"),
        (actual.get("seed"), expected.get("seed"), "seed {}"),
        (evaluation.get("precision"), mapping(config.get("trainer")).get("precision"), "{}"),
        (mapping(evaluation.get("checkpoint")).get("file"), FINAL, "{}"),
        (data.get("name"), mapping(config.get("data")).get("name"), "on {}"),
    ]
    words = [
        text.format(value)
        for value, configured, text in compared
        if value is not None and configured is not None and value != configured
    ]
    images = data.get("val"), fingerprint.get("val")
    return words if None in images or same_images(*images) else [*words, "other images"]


def same_images(one: Any, other: Any) -> bool:
    """Whether two fingerprints of a split can be of the same images. Their ``contents`` count only
    if both have them: only scripts/prepare_data.py reads all files."""
    if isinstance(one, dict) and isinstance(other, dict):
        both = "contents" in one and "contents" in other
        one, other = (
            {key: value for key, value in part.items() if both or key != "contents"}
            for part in (one, other)
        )
    return bool(one == other)


def check_evaluations(evaluations: Any, score: Score = TOP1) -> tuple[dict[str, Any], ...]:
    """Validate the list of evaluations of a version-2 ``result.json``; None is an empty list.

    Raises:
        LookupError, TypeError: it is not a list, or an entry is malformed.
    """
    if not isinstance(evaluations, (list, type(None))):
        raise TypeError(f"evaluations {evaluations!r} where a list is expected")
    for evaluation in evaluations or ():
        if not isinstance(mapping(evaluation)["statistics"], str):
            raise TypeError(f"statistics {evaluation['statistics']!r} where a name is expected")
        if evaluation[score.key] is not None:
            number(evaluation[score.key])
        if evaluation.get("top5") is not None:
            number(evaluation["top5"])
        for key in ("seen", "top1_correct", "top5_correct"):
            if evaluation.get(key) is not None and type(evaluation[key]) is not int:
                raise TypeError(f"{key} {evaluation[key]!r} where a count is expected")
        for key in ("checkpoint", "data"):
            mapping(evaluation.get(key))
        calibration = mapping(evaluation.get("calibration"))
        if not isinstance(calibration.get("samples_requested", 0), (int, str)):
            raise TypeError(f"samples requested {calibration['samples_requested']!r}")
        if not isinstance(calibration.get("samples_used", 0), int):
            raise TypeError(f"samples used {calibration['samples_used']!r}")
    return tuple(evaluations or ())
