"""Load trained networks from a run directory or the folder of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from sn_imagenet.config import DataConfig, ModelConfig, NormConfig, from_dict
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.models.build import build_network
from sn_imagenet.norms import norm_layers
from sn_imagenet.runs import RunDirectory, RunError, checkpoint
from sn_imagenet.runs.reading import mapping, read_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VERSION = 1  # of the entry sn_imagenet in an export's config.json


@dataclass(frozen=True)
class SavedNetwork:
    """A network in evaluation mode on the CPU, with the configs to build it again.

    ``statistics``: the kind of BN statistics in evaluation, ``moving_average`` or
    ``batch_average``, or ``sample`` for a method that stores none. ``classes``: class names in the
    order of the logits, () if the file has none.
    """

    network: nn.Module
    model: ModelConfig
    norm: NormConfig
    statistics: str
    classes: tuple[str, ...] = ()
    data: DataConfig | None = None  # None for an export


def load(folder_or_run: str | Path, statistics: str | None = None) -> nn.Module:
    """Load a trained network: images [N, 3, S, S], normalized as in training, to logits [N, K]; a
    network of stylization maps images [N, 3, H, W] to such images, in pixels from 0 to 255.

    Args:
        folder_or_run: the output folder of ``scripts/export.py``, or the directory of a finished
            run.
        statistics: the BN statistics for evaluation, ``moving_average`` or ``batch_average``; None
            for the method's ``test_statistics``. An export holds only one kind.

    Returns:
        The network in evaluation mode on the CPU, float32.

    Raises:
        UserError: there is no network at that path, it cannot be read, or it lacks the statistics.
    """
    return read_saved(Path(folder_or_run), statistics).network


def read_saved(path: Path, statistics: str | None = None) -> SavedNetwork:
    """Like :func:`load`, but also returns the configs and classes."""
    if RunDirectory(path).config.is_file():
        return _load_run(RunDirectory(path), statistics)
    if (path / CONFIG).is_file():
        return _load_export(path, statistics)
    raise UserError(
        f"{path}: no trained network there; expected a run directory (it holds a config.yaml) or "
        f"the folder of an export ({CONFIG} and {WEIGHTS})"
    )


def start_from(
    path: Path, network: nn.Module, norm: NormConfig, classes: Sequence[str]
) -> list[str]:
    """Load the weights of an export, or of a run with its moving averages, into ``network``. If its
    classes are not ``classes``, the last layer keeps its initial weights.

    Returns:
        The differences from the loaded network, one line each.

    Raises:
        UserError: as :func:`load`; or the weights are of another network.
    """
    directory = RunDirectory(path)
    saved = _load_final(directory) if directory.config.is_file() else read_saved(path)
    weights, initial = saved.network.state_dict(), network.state_dict()
    head = classifier_of(network)
    new_head = saved.network.num_classes != len(classes)
    if saved.classes:
        new_head = list(saved.classes) != list(classes)
    if new_head:
        weights.update({key: initial[key] for key in initial if key.rpartition(".")[0] == head})
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"init={path}: its network, model.name={saved.model.name} with norm={saved.norm.name}, "
            f"does not match this one: {' '.join(str(error).split())[:200]}"
        ) from error
    differences = [f"a new {head}, because its classes differ"] if new_head else []
    if saved.norm.args != norm.args:
        differences.append(f"norm.args={norm.args} instead of {saved.norm.args}")
    return differences


def rebuild(model: ModelConfig, norm: NormConfig, weights: Mapping[str, Tensor]) -> nn.Module:
    """Build the network and load ``weights``; in evaluation mode.

    Raises:
        UserError: the weights are of another network.
    """
    network = build_network(model, norm, num_classes=1)
    try:
        if is_classifier(network):
            classes = len(weights[f"{classifier_of(network)}.weight"])
            network.reset_classifier(classes)  # type: ignore[operator]
        network.load_state_dict(dict(weights))
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"the weights are not those of model.name={model.name} with norm={norm.name}: "
            f"{' '.join(reason.split())[:300]}"
        ) from error
    return network.eval()


def is_classifier(network: nn.Module) -> bool:
    """Whether it is a timm network, with logits as output, rather than a network of images."""
    return hasattr(network, "get_classifier")


def classifier_of(network: nn.Module) -> str:
    """The name of a timm network's last linear layer."""
    classifier = network.get_classifier()  # type: ignore[operator]
    return next(name for name, module in network.named_modules() if module is classifier)


def _load_run(directory: RunDirectory, statistics: str | None) -> SavedNetwork:
    saved = _load_final(directory)
    kind = statistics or saved.norm.test_statistics
    stores = any(layer.track_running_stats for layer in norm_layers(saved.network).values())
    possible = ("moving_average", "batch_average") if stores else ("sample",)
    if kind not in possible:
        raise UserError(f"statistics={kind}: {directory.path} has {' and '.join(possible)} only")
    if kind == "batch_average":
        _use_batch_average(saved.network, directory)
    return replace(saved, statistics=kind)


def _load_final(directory: RunDirectory) -> SavedNetwork:
    """The network of ``final.pt``, with moving averages as running statistics."""
    config = from_dict(directory.read_config())
    if not directory.final.exists():
        raise RunError(
            f"{directory.path} has no {directory.final.name}: training has not finished; run the "
            "command that started it again to resume it"
        )
    state = checkpoint.load(directory.final)
    try:
        network = rebuild(config.model, config.norm, mapping(state["model"]))
        classes = tuple(str(name) for name in state.get("classes", ()))
    except (KeyError, TypeError, UserError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{directory.final} is not a checkpoint of this run: {reason}") from error
    return SavedNetwork(network, config.model, config.norm, "", classes, config.data)


def _use_batch_average(network: nn.Module, directory: RunDirectory) -> None:
    statistics = checkpoint.load_batch_average(directory)
    try:
        for name, layer in norm_layers(network).items():
            if layer.track_running_stats:
                mean, var = statistics[name]
                layer.get_buffer("running_mean").copy_(mean)
                layer.get_buffer("running_var").copy_(var)
    except (LookupError, TypeError, RuntimeError) as error:
        raise RunError(
            f"{directory.batch_average} does not match this run's network ({error!r}): remove it; "
            f"python evaluate.py run={directory.path} writes it again"
        ) from error


def _load_export(folder: Path, statistics: str | None) -> SavedNetwork:
    try:
        config = mapping(read_json(folder / CONFIG))
        entry = mapping(config["sn_imagenet"])
        if entry["version"] != VERSION:
            raise ValueError(f"version {entry['version']}: expected {VERSION}")
        model, norm = ModelConfig(**entry["model"]), NormConfig(**entry["norm"])
        exported = str(entry["statistics"])
        classes = tuple(str(name) for name in config.get("label_names", ()))
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, LookupError, TypeError, ValueError, safetensors.SafetensorError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{folder} is not a readable export: {reason}; write it again with scripts/export.py"
        ) from error
    if statistics not in (None, exported):
        raise UserError(f"statistics={statistics}: {folder} was exported with {exported}")
    try:
        network = rebuild(model, norm, weights)
    except UserError as error:
        raise UserError(f"{folder / WEIGHTS}: {error}") from error
    return SavedNetwork(network, model, norm, exported, classes)


def config_entry(saved: SavedNetwork) -> dict[str, Any]:
    """The entry ``sn_imagenet`` of an export's config.json, from which :func:`load` builds it."""
    return {
        "version": VERSION,
        "model": asdict(saved.model),
        "norm": asdict(saved.norm),
        "statistics": saved.statistics,
    }
