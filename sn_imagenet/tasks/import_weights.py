"""Import weights that were trained elsewhere into a run directory, for evaluate.py."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig, ModelConfig
from sn_imagenet.errors import UserError
from sn_imagenet.models.official import convert_official, detect_omega
from sn_imagenet.models.published import detect_norm, find_published
from sn_imagenet.models.saved import rebuild
from sn_imagenet.runs import RunDirectory, RunError, checkpoint
from sn_imagenet.runs.methods import IMPORTED
from sn_imagenet.runs.provenance import provenance
from sn_imagenet.runs.reading import open_to_read
from sn_imagenet.runs.start import claimed
from sn_imagenet.tasks.detection.models import PUBLISHED, published_detector


def import_official(file: Path, config: ExperimentConfig) -> Path:
    """Import an authors' checkpoint as the run ``config.run_dir``; returns its path.

    The layer divides each instance's variance by HW - 1 as theirs does. BN's statistics are copied
    from the file.

    Args:
        config: an SN config with the setting in which the file was trained.

    Raises:
        UserError: the file is not such a checkpoint or not of ``config.model``, or the directory
            already holds a run.
    """
    try:
        weights = convert_official(_read_weights(file))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    omega = detect_omega(weights)
    norm = replace(
        config.norm,
        args={"omega": omega, "instance_correction": 1},
        test_statistics="moving_average" if "bn" in omega else "sample",
    )
    return _write_weights(
        replace(config, norm=norm), weights, f"the authors' {_name_and_hash(file)}"
    )


def import_published(file: Path, name: str, config: ExperimentConfig) -> Path:
    """Import weights of torchvision or timm as the run ``config.run_dir``; returns its path.

    The run gets the image size, crop, interpolation, mean and std of the weights ``name``. A
    detector's run is for COCO 2017 and has its 80 categories.

    Raises:
        UserError: there are no weights of that name, ``file`` does not hold them, or the directory
            already holds a run.
    """
    if name in PUBLISHED.values():
        return _import_detector(file, name, config)
    published, weights = find_published(name), _read_weights(file)
    norm = detect_norm(weights)
    if norm != config.norm.name:
        raise UserError(f"{file} holds weights of {norm}: give norm={norm}")
    data = replace(config.data, **published.preprocessing)
    model = replace(config.model, name=published.model)
    source = f"{name} of {_name_and_hash(file)}"
    return _write_weights(replace(config, data=data, model=model), weights, source)


def _import_detector(file: Path, name: str, config: ExperimentConfig) -> Path:
    """As :func:`import_published`, for the weights of :data:`PUBLISHED`. Of the logits and boxes of
    91 classes, those of the eleven that COCO does not use are left out."""
    if config.task["name"] != "detection":
        raise UserError(f"{name}: give task=detection data.root=DIR")
    names = torchvision.models.get_weight(name).meta["categories"]
    kept = torch.tensor([number for number, label in enumerate(names) if label != "N/A"])
    model = next(model for model, published in PUBLISHED.items() if published == name)
    network, weights = published_detector(model, len(kept) - 1), _read_weights(file)
    try:
        for key, value in weights.items():
            if re.match(r"roi_heads\.\w+_predictor\.(cls_score|bbox_pred|mask_fcn_logits)", key):
                weights[key] = value.unflatten(0, (len(names), -1))[kept].flatten(0, 1)
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file} does not hold {name}: {reason}") from error
    norm = replace(config.norm, name="frozen_bn", test_statistics="sample")
    config = replace(config, norm=norm, model=ModelConfig(model, {}, fuse_relu=False))
    classes = [label for label in names if label != "N/A"][1:]  # without the background
    return _write_run(config, network, f"{name} of {_name_and_hash(file)}", classes)


def _read_weights(file: Path) -> dict[str, Any]:
    """The weights in a .pth or .safetensors file, loaded without executing code in it. They may be
    in an entry of a training checkpoint, and of a network in DistributedDataParallel or compiled.
    """
    try:
        with open_to_read(file) as opened:
            if file.suffix == ".safetensors":
                loaded: Any = safetensors.torch.load(opened.read())
            else:
                loaded = torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own exceptions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, OSError):
            reason = "it is no file of weights, or cut off, or holds code, which is not run"
        raise UserError(f"{file} cannot be read: {reason}; expected PyTorch weights") from error
    for entry in ("state_dict_ema", "state_dict", "model_ema", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(entry), dict):
            loaded = loaded[entry]
            break
    if not isinstance(loaded, dict) or not any(isinstance(w, Tensor) for w in loaded.values()):
        raise UserError(f"{file} holds a {type(loaded).__name__}: expected a dict of weights")
    wrapped = re.compile(r"^(module\.|_orig_mod\.)+")
    weights = {wrapped.sub("", str(name)): value for name, value in loaded.items()}
    for name, value in weights.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise UserError(f"{file}: {name} has values that are not finite")
    return weights


def _name_and_hash(file: Path) -> str:
    return f"{file.name}, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _write_weights(config: ExperimentConfig, weights: Mapping[str, Tensor], source: str) -> Path:
    try:
        network = rebuild(config.model, config.norm, weights)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return _write_run(config, network, source)


def _write_run(
    config: ExperimentConfig, network: nn.Module, source: str, classes: Sequence[str] = ()
) -> Path:
    norm = replace(config.norm, name=f"{config.norm.name}{IMPORTED}", single_sample={})
    config = replace(config, norm=norm, imported=source)
    directory = RunDirectory(Path(config.run_dir))
    if directory.config.exists() or directory.result.exists():
        raise RunError(f"{directory.path} already holds a run: choose another --out, or remove it")
    with claimed(directory, config):
        state = {
            "model": network.state_dict(),
            "config": config.to_dict(),
            "training": {"steps": 0},  # not trained here
            "provenance": provenance(torch.device("cpu")),
            "data_fingerprint": {},
            **({"classes": list(classes)} if classes else {}),
        }
        checkpoint.save(directory.final, state)
    return directory.path
