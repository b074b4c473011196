"""Weights that were trained elsewhere as the directory of a run, which evaluate.py evaluates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import UserError
from sn_imagenet.evaluation.provenance import provenance
from sn_imagenet.models.official import from_official, omega_of
from sn_imagenet.models.published import method_of, published
from sn_imagenet.models.saved import rebuild
from sn_imagenet.runs import RunDirectory, RunError, checkpoint
from sn_imagenet.runs.methods import IMPORTED


def import_official(file: Path, config: ExperimentConfig) -> Path:
    """A checkpoint of the authors' repository as the run ``config.run_dir``; returns its path.

    The layer divides each instance's variance by HW - 1 as theirs does; BN's statistics are taken
    as they stand in the file.

    Args:
        config: of SN, with the setting that the file was trained in.

    Raises:
        UserError: the file is none of theirs, or not of ``config.model``; the place is taken.
    """
    try:
        weights = from_official(_read(file))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    omega = omega_of(weights)
    norm = replace(
        config.norm,
        args={"omega": omega, "instance_correction": 1},
        test_statistics="moving_average" if "bn" in omega else "sample",
    )
    return _write(replace(config, norm=norm), weights, f"the authors' {_named(file)}")


def import_published(file: Path, name: str, config: ExperimentConfig) -> Path:
    """Weights that torchvision or timm publish as ``name`` as the run ``config.run_dir``, with
    their size, crop, interpolation and normalization; returns its path.

    Raises:
        UserError: there are none of that name, the file does not hold them; the place is taken.
    """
    known, weights = published(name), _read(file)
    if method_of(weights) != config.norm.name:
        raise UserError(
            f"{file} holds weights of {method_of(weights)}: give norm={method_of(weights)}"
        )
    data = replace(
        config.data,
        image_size=known.image_size,
        resize_size=known.resize_size,
        interpolation=known.interpolation,
        mean=known.mean,
        std=known.std,
    )
    model = replace(config.model, name=known.model)
    return _write(replace(config, data=data, model=model), weights, f"{name} of {_named(file)}")


def _read(file: Path) -> dict[str, Any]:
    """What a .pth, or a .safetensors file, holds; code inside it is never run."""
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader raises whatever it found
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} cannot be read: {reason}; expected weights of PyTorch") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{file} holds a {type(loaded).__name__}: expected a dict of weights")
    return loaded


def _named(file: Path) -> str:
    return f"{file.name}, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _write(config: ExperimentConfig, weights: Mapping[str, Tensor], source: str) -> Path:
    norm = replace(config.norm, name=f"{config.norm.name}{IMPORTED}", single_sample={})
    config = replace(config, norm=norm, imported=source)
    directory = RunDirectory(Path(config.run_dir))
    if directory.config.exists() or directory.result.exists():
        raise RunError(f"{directory.path} holds a run already: choose another --out, or remove it")
    try:
        network = rebuild(config.model, config.norm, weights)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    directory.claim(config)
    try:
        state = {
            "model": network.state_dict(),
            "config": config.to_dict(),
            "training": {"steps": 0},  # of ours
            "provenance": provenance(torch.device("cpu")),
            "data_fingerprint": {},
        }
        checkpoint.save(directory.final, state)
    finally:
        directory.release()
    return directory.path
