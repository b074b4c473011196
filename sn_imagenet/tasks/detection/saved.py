"""Load trained detectors from a run or an export, and export them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.errors import UserError
from sn_imagenet.models import SavedWeights, load_weights, read_weights
from sn_imagenet.models.export import Exported
from sn_imagenet.models.saved import CONFIG, WEIGHTS, config_entry, use_statistics, write_weights
from sn_imagenet.runs import RunDirectory, write_json
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
    saved = read_weights(path)
    if saved.task != "detection":
        raise UserError(f"{path}: a run of task={saved.task}; expected one of task=detection")
    network = build_detector(_config(path), len(saved.classes))
    load_weights(network, saved)
    return network.eval(), use_statistics(network, saved, statistics)


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
    config = _config(run).to_dict()
    config["data"] |= dict.fromkeys(_PATHS)  # of this machine
    entry = {**config_entry(saved), "task": saved.task, "config": config}
    content = {"architecture": saved.model.name, "sn_imagenet": entry, "label_names": saved.classes}
    write_weights(network, out)
    write_json(out / CONFIG, content, "--out")
    files = {WEIGHTS: "the weights", CONFIG: "the detector, its data and its training"}
    loading = [("With sn-imagenet:", _CODE)]
    return Exported(saved.model.name, saved.statistics, loading, files)
