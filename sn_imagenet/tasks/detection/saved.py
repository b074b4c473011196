"""Load trained detectors from a run or an export, and export them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.errors import UserError
from sn_imagenet.models import SavedWeights, load_weights, read_weights
from sn_imagenet.models.export import Exported
from sn_imagenet.models.saved import CONFIG, WEIGHTS, config_entry, use_statistics
from sn_imagenet.runs import RunDirectory, write_atomically, write_text
from sn_imagenet.runs.reading import read_json
from sn_imagenet.tasks.detection.models import build_detector

_PATHS = ("root", "train", "val", "train_annotations", "val_annotations")
_CODE = """from pathlib import Path
from sn_imagenet.tasks.detection.saved import load_detector

network, saved = load_detector(Path("FOLDER"))  # saved.classes: names of the categories
"""


def load_detector(path: Path, statistics: str | None = None) -> tuple[Any, SavedWeights]:
    """The detector of a finished run or an export, in evaluation mode on the CPU, and what is saved
    with it: ``classes`` are the names of its categories.

    Args:
        statistics: of BN in a run, ``moving_average`` or ``batch_average``; None for
            ``norm.test_statistics``. An export has one kind only.

    Raises:
        UserError: it is neither, it is not one of detection, or it lacks the statistics.
    """
    saved, run = read_weights(path), RunDirectory(path)
    if saved.task != "detection":
        raise UserError(f"{path}: a run of task={saved.task}; expected one of task=detection")
    config = _config(path)
    network = build_detector(config, len(saved.classes))
    load_weights(network, saved)
    kind = saved.statistics or statistics or config.norm.test_statistics
    if not saved.statistics:
        use_statistics(network, run, kind)
    elif statistics not in (None, kind):
        raise UserError(f"statistics={statistics}: {path} was exported with {kind}")
    return network.eval(), replace(saved, statistics=kind)


def _config(path: Path) -> ExperimentConfig:
    run = RunDirectory(path)
    if run.config.is_file():
        return from_dict(run.read_config())
    return from_dict(read_json(path / CONFIG)["sn_imagenet"]["config"])


def export_detector(run: Path, out: Path, statistics: str | None = None) -> Exported:
    """Write the weights of a detector and what :func:`load_detector` needs: ``model.safetensors``
    and ``config.json``. There are no programs: torch.export fails on torchvision's detectors
    (pytorch/vision#9306).

    Raises:
        UserError: as :func:`load_detector`.
    """
    network, saved = load_detector(run, statistics)
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    serialized = safetensors.torch.save(weights, {"format": "pt"})
    config = _config(run).to_dict()
    config["data"] |= dict.fromkeys(_PATHS)  # of this machine
    entry = {**config_entry(saved), "task": saved.task, "config": config}
    content = {"architecture": saved.model.name, "sn_imagenet": entry, "label_names": saved.classes}
    write_atomically(out / WEIGHTS, serialized, "--out")
    write_text(out / CONFIG, json.dumps(content, indent=2) + "\n", "--out")
    files = {WEIGHTS: "the weights", CONFIG: "the detector, its data and its training"}
    loading = [("With sn-imagenet:", _CODE)]
    return Exported(saved.model.name, saved.statistics, loading, files)
