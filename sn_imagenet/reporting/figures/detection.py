"""Figures of detection: objects found beside the true ones, importance weights by part (Fig. 1(c)).
Fig. 5 is drawn as Fig. 6(b)."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

from sn_imagenet.reporting.figures.figure9 import pictures
from sn_imagenet.reporting.figures.series import FigureData
from sn_imagenet.reporting.figures.weights import figure4
from sn_imagenet.reporting.study import Study
from sn_imagenet.runs import FINISHED, Run

ROWS = 4
# The parts of a detector, and how the stages of their layers begin.
_PARTS = {"ResNet": "res", "FPN": "fpn", "box head": "box", "mask head": "mask"}


def found_objects(study: Study) -> FigureData | None:
    """The true objects of a few images, and those that each method finds (``scripts/detect.py``
    with annotations and without ``--out``)."""
    data = pictures(study, "detected", ("truth",))
    return data and replace(data, panels=dict(islice(data.panels.items(), ROWS)))


def weights_by_part(study: Study) -> FigureData | None:
    """The weight of each member of Omega in the parts of SN's detectors: the mean over layers of
    each run, their mean and standard deviation."""
    parts: dict[Any, list[Run]] = {}
    for (norm, setting), cell in study.drawn.items():
        for part, stage in _PARTS.items():
            name = f"{part} {setting}" if len(study.drawn_settings) > 1 else part
            for run in cell.runs:
                layers = tuple(w for w in run.weights if w.stage.startswith(stage))
                if norm == "sn" and run.state == FINISHED and layers:
                    parts.setdefault(name, []).append(replace(run, weights=layers))
    return replace(figure4(parts), x="part of the detector") if parts else None
