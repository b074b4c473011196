"""Load trained networks from a run directory or the folder of an export."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from sn_imagenet.config import CLASSIFICATION, DataConfig, ModelConfig, NormConfig, from_dict
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.models.build import build_network
from sn_imagenet.norms import norm_layers
from sn_imagenet.runs import RunDirectory, checkpoint, write_atomically
from sn_imagenet.runs.reading import mapping, read_json
from sn_imagenet.runs.start import blame_config

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VERSION = 1  # of the entry sn_imagenet in an export's config.json


@dataclass(frozen=True, kw_only=True)
class SavedWeights:
    """What a run or an export holds of its network: ``weights`` is its ``state_dict``.

    ``statistics``: the kind of BN statistics in evaluation, ``moving_average`` or
    ``batch_average``, or ``sample`` for a method that stores none; empty for the weights of a run,
    which has moving averages. ``classes``: class names in the order of the logits, () if the file
    has none. ``data``: None for an export.
    """

    path: Path
    weights: dict[str, Tensor]
    model: ModelConfig
    norm: NormConfig
    task: str = CLASSIFICATION["name"]
    statistics: str = ""
    classes: tuple[str, ...] = ()
    data: DataConfig | None = None


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
    return read_saved(Path(folder_or_run), statistics)[0]


def read_saved(path: Path, statistics: str | None = None) -> tuple[nn.Module, SavedWeights]:
    """The network of :func:`load`, and what is saved with it."""
    saved = read_weights(path)
    try:
        network = rebuild(saved.model, saved.norm, saved.weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return network, use_statistics(network, saved, statistics)


def read_weights(path: Path) -> SavedWeights:
    """The weights of a finished run of any task, or of an export; no network is built.

    Raises:
        UserError: there are none at that path, or they cannot be read.
    """
    if RunDirectory(path).config.is_file():
        return _read_run(RunDirectory(path))
    if (path / CONFIG).is_file():
        return _read_export(path)
    raise UserError(
        f"{path}: no trained network there; expected a run directory (it holds a config.yaml) or "
        f"the folder of an export ({CONFIG} and {WEIGHTS})"
    )


def load_weights(network: nn.Module, saved: SavedWeights, new: Collection[str] = ()) -> None:
    """Load the weights into ``network``. The entries ``new`` keep their initial values.

    Raises:
        ConfigError: the other entries differ in names or shapes; the message lists them.
    """
    initial = network.state_dict()
    weights = {**saved.weights, **{key: initial[key] for key in new}}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        there, here = ({k: list(v.shape) for k, v in s.items()} for s in (weights, initial))
        wrong = [
            f"{key} {there.get(key, 'missing')} there, {here.get(key, 'missing')} here"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(
            f"init={saved.path}: its network, task={saved.task} model.name={saved.model.name} with "
            f"norm={saved.norm.name}, does not match this one: {'; '.join(wrong[:5])}{more}"
        ) from error


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


def use_statistics(network: nn.Module, saved: SavedWeights, statistics: str | None) -> SavedWeights:
    """Give ``network``, which has the saved weights, the running statistics of :func:`load`;
    returns ``saved`` with their kind."""
    path, kind = saved.path, statistics or saved.statistics or saved.norm.test_statistics
    if saved.statistics:
        if kind != saved.statistics:
            raise UserError(f"statistics={kind}: {path} was exported with {saved.statistics}")
        return saved
    layers = norm_layers(network)
    stores = any(layer.track_running_stats for layer in layers.values())
    possible = ("moving_average", "batch_average") if stores else ("sample",)
    if kind not in possible:
        raise UserError(f"statistics={kind}: {path} has {' and '.join(possible)} only")
    if kind == "batch_average":
        averages = checkpoint.load_batch_average(RunDirectory(path))
        for name, layer in layers.items():
            if layer.track_running_stats:
                mean, var = averages[name]
                layer.get_buffer("running_mean").copy_(mean)
                layer.get_buffer("running_var").copy_(var)
    return replace(saved, statistics=kind)


def _read_run(directory: RunDirectory) -> SavedWeights:
    config = from_dict(directory.read_config())
    with blame_config(directory):
        state = checkpoint.load_final(directory, directory.read_config())
    return SavedWeights(
        path=directory.path,
        weights=state["model"],
        model=config.model,
        norm=config.norm,
        task=config.task["name"],
        classes=tuple(state.get("classes", ())),
        data=config.data,
    )


def _read_export(folder: Path) -> SavedWeights:
    try:
        config = mapping(read_json(folder / CONFIG))
        entry = mapping(config["sn_imagenet"])
        if entry["version"] != VERSION:
            raise ValueError(f"version {entry['version']}: expected {VERSION}")
        model, norm = ModelConfig(**entry["model"]), NormConfig(**entry["norm"])
        exported, task = str(entry["statistics"]), str(entry.get("task", SavedWeights.task))
        classes = tuple(str(name) for name in config.get("label_names", ()))
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, LookupError, TypeError, ValueError, safetensors.SafetensorError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{folder} is not a readable export: {reason}; write it again with scripts/export.py"
        ) from error
    return SavedWeights(
        path=folder,
        weights=weights,
        model=model,
        norm=norm,
        task=task,
        statistics=exported,
        classes=classes,
    )


def write_weights(network: nn.Module, out: Path) -> None:
    """Write the weights of an export."""
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    write_atomically(out / WEIGHTS, safetensors.torch.save(weights, {"format": "pt"}), "--out")


def config_entry(saved: SavedWeights) -> dict[str, Any]:
    """The entry ``sn_imagenet`` of an export's config.json, from which :func:`load` builds it."""
    return {
        "version": VERSION,
        "model": asdict(saved.model),
        "norm": asdict(saved.norm),
        "statistics": saved.statistics,
    }
