"""The evaluations of a ``result.json``: how each was made, and which one counts.

A result of version 2 lists every evaluation of its run, in the order in which they were made; those
of version 1 are read as such. docs/results.md lists their entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sn_imagenet.runs.files import FINAL
from sn_imagenet.runs.reading import mapping, number


def counted_evaluations(
    evaluations: Iterable[dict[str, Any]],
    config: dict[str, Any],
    fingerprint: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Statistics -> the evaluation under them that counts: the first that was made as the run's own
    config says (:func:`deviations_from_config`). A later one never replaces it.

    Args:
        evaluations: of ``result.json``, version 2.
        config: the run's.
        fingerprint: of the data that it was trained with.
    """
    counted: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        if not deviations_from_config(evaluation, config, fingerprint):
            counted.setdefault(str(evaluation["statistics"]), evaluation)
    return counted


def deviations_from_config(
    evaluation: dict[str, Any], config: dict[str, Any], fingerprint: dict[str, Any]
) -> list[str]:
    """In what ``evaluation`` was made otherwise than the run's config says, in words such as
    ``1000 samples`` or ``last.pt``; empty if in nothing. Compared are the checkpoint (the final
    one), the precision, the data and, of a batch average, the calibration's estimator, samples and
    seed. What a config of another version does not say differs in nothing.
    """
    asked, data = mapping(config.get("calibration")), mapping(evaluation.get("data"))
    made = mapping(evaluation.get("calibration"))
    compared = [
        (made.get("samples_requested"), asked.get("samples"), "{} samples"),
        (made.get("estimator"), asked.get("estimator"), "{}"),
        (made.get("seed"), asked.get("seed"), "seed {}"),
        (evaluation.get("precision"), mapping(config.get("trainer")).get("precision"), "{}"),
        (mapping(evaluation.get("checkpoint")).get("file"), FINAL, "{}"),
        (data.get("name"), mapping(config.get("data")).get("name"), "on {}"),
    ]
    words = [
        text.format(ours)
        for ours, theirs, text in compared
        if ours is not None and theirs is not None and ours != theirs
    ]
    images = data.get("val"), fingerprint.get("val")
    return [*words, "other images"] if None not in images and images[0] != images[1] else words


def check_evaluations(evaluations: Any) -> tuple[dict[str, Any], ...]:
    """The list of ``result.json``, version 2; None as an empty one.

    Raises:
        LookupError, TypeError: it is none, or an entry of it is none.
    """
    if not isinstance(evaluations, (list, type(None))):
        raise TypeError(f"evaluations {evaluations!r} where a list is expected")
    for evaluation in evaluations or ():
        if not isinstance(mapping(evaluation)["statistics"], str):
            raise TypeError(f"statistics {evaluation['statistics']!r} where a name is expected")
        number(evaluation["top1"])
        if evaluation.get("top5") is not None:
            number(evaluation["top5"])
        for key in ("checkpoint", "data"):
            mapping(evaluation.get(key))
        calibration = mapping(evaluation.get("calibration"))
        if not isinstance(calibration.get("samples_requested", 0), (int, str)):
            raise TypeError(f"samples requested {calibration['samples_requested']!r}")
        if not isinstance(calibration.get("samples_used", 0), int):
            raise TypeError(f"samples used {calibration['samples_used']!r}")
    return tuple(evaluations or ())


def from_version_1(result: dict[str, Any]) -> dict[str, Any]:
    """A result of version 1 as one of version 2.

    Version 1 held one evaluation under each of the statistics, the last, and the config it was made
    with: there all evaluations are the config's own.

    Raises:
        TypeError: an entry is none that a run wrote.
    """
    provenance = dict(mapping(result.get("provenance")))
    evaluated_by = provenance.pop("evaluated_by", None)
    config, training = mapping(result.get("config")), mapping(result.get("training"))
    how = {
        "precision": mapping(config.get("trainer")).get("precision"),
        "checkpoint": {
            "file": FINAL,
            "epoch": training.get("epochs"),
            "step": training.get("steps"),
        },
        "data": {
            "name": mapping(result.get("cell")).get("data"),
            "val": mapping(provenance.get("data_fingerprint")).get("val"),
        },
        "by": "evaluate.py" if evaluated_by else "training",
        "at": provenance.get("written_at"),
        "provenance": evaluated_by,
    }
    evaluations = [
        {"statistics": statistics, **mapping(evaluation), **how}
        for statistics, evaluation in mapping(result.get("evaluations")).items()
    ]
    return {**result, "version": 2, "evaluations": evaluations, "provenance": provenance}
