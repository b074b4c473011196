"""Trained networks from their files: a run's directory, or the folder of an export."""

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
VERSION = 1  # of what an export's config.json says beside timm's entries


@dataclass(frozen=True)
class SavedNetwork:
    """A network in evaluation mode on the CPU, with what it takes to build it again.

    ``statistics``: of BN in evaluation: ``moving_average`` or ``batch_average``, or ``sample`` for
    a method that stores none. ``classes``: their names in the order of the logits, () where the
    file does not say.
    """

    network: nn.Module
    model: ModelConfig
    norm: NormConfig
    statistics: str
    classes: tuple[str, ...] = ()
    data: DataConfig | None = None  # of a run


def load(folder_or_run: str | Path, statistics: str | None = None) -> nn.Module:
    """A trained network for images [N, 3, S, S], normalized as its data were; logits [N, classes].

    Args:
        folder_or_run: what ``scripts/export.py`` wrote, or the directory of a run that is trained
            to its end.
        statistics: ``moving_average`` or ``batch_average``, which BN's members use in evaluation;
            None: those by which the method is judged. An export holds one of them.

    Returns:
        The network in evaluation mode on the CPU, float32.

    Raises:
        UserError: there is no such thing there, it cannot be read, or it has no such statistics.
    """
    return read_saved(Path(folder_or_run), statistics).network


def read_saved(path: Path, statistics: str | None = None) -> SavedNetwork:
    """As :func:`load`, with all that the files say of the network."""
    if RunDirectory(path).config.is_file():
        return _of_run(RunDirectory(path), statistics)
    if (path / CONFIG).is_file():
        return _of_export(path, statistics)
    raise UserError(
        f"{path}: no trained network there; expected a run directory (it holds a config.yaml) or "
        f"the folder of an export ({CONFIG} and {WEIGHTS})"
    )


def start_from(
    path: Path, network: nn.Module, norm: NormConfig, classes: Sequence[str]
) -> list[str]:
    """Give ``network`` the weights of a run, with the running statistics that it was trained with,
    or of an export. Where its classes are not ``classes``, the last layer stays as it is.

    Returns:
        What is not as it was there, a line each.

    Raises:
        UserError: as :func:`load`; or the weights are another network's.
    """
    directory = RunDirectory(path)
    saved = _trained(directory) if directory.config.is_file() else read_saved(path)
    weights, own = saved.network.state_dict(), network.state_dict()
    head = classifier_of(network)
    new_head = saved.network.num_classes != len(classes)
    if saved.classes:
        new_head = list(saved.classes) != list(classes)
    if new_head:
        weights.update({key: own[key] for key in own if key.rpartition(".")[0] == head})
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"init={path}: its network, model.name={saved.model.name} with norm={saved.norm.name}, "
            f"is not this one: {' '.join(str(error).split())[:200]}"
        ) from error
    changed = [f"a new {head}, since its classes are others"] if new_head else []
    if saved.norm.args != norm.args:
        changed.append(f"norm.args={norm.args}, {saved.norm.args} there")
    return changed


def rebuild(model: ModelConfig, norm: NormConfig, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of these ``weights``, in evaluation mode.

    Raises:
        UserError: they are another network's.
    """
    network = build_network(model, norm, num_classes=1)
    name = classifier_of(network)
    try:
        network.reset_classifier(len(weights[f"{name}.weight"]))  # type: ignore[operator]
        network.load_state_dict(dict(weights))
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"the weights are not those of model.name={model.name} with norm={norm.name}: "
            f"{' '.join(reason.split())[:300]}"
        ) from error
    return network.eval()


def classifier_of(network: nn.Module) -> str:
    """The name of a timm network's last linear layer."""
    classifier = network.get_classifier()  # type: ignore[operator]
    return next(name for name, module in network.named_modules() if module is classifier)


def _of_run(directory: RunDirectory, statistics: str | None) -> SavedNetwork:
    saved = _trained(directory)
    wanted = statistics or saved.norm.test_statistics
    stores = any(layer.track_running_stats for layer in norm_layers(saved.network).values())
    possible = ("moving_average", "batch_average") if stores else ("sample",)
    if wanted not in possible:
        raise UserError(f"statistics={wanted}: {directory.path} has {' and '.join(possible)} only")
    if wanted == "batch_average":
        _use_batch_average(saved.network, directory)
    return replace(saved, statistics=wanted)


def _trained(directory: RunDirectory) -> SavedNetwork:
    """The network as training left it."""
    config = from_dict(directory.read_config())
    if not directory.final.exists():
        raise RunError(
            f"{directory.path} has no {directory.final.name}: it is not trained to its end; "
            "continue it with the command that started it"
        )
    trained = checkpoint.load(directory.final)
    try:
        network = rebuild(config.model, config.norm, mapping(trained["model"]))
        classes = tuple(str(name) for name in trained.get("classes", ()))
    except (KeyError, TypeError, UserError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{directory.final} is not what this run trained: {reason}") from error
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
            f"{directory.batch_average} is not of this run's network ({error!r}): remove it; "
            f"python evaluate.py run={directory.path} makes it anew"
        ) from error


def _of_export(folder: Path, statistics: str | None) -> SavedNetwork:
    try:
        written = mapping(read_json(folder / CONFIG))
        own = mapping(written["sn_imagenet"])
        if own["version"] != VERSION:
            raise ValueError(f"version {own['version']}: expected {VERSION}")
        model, norm = ModelConfig(**own["model"]), NormConfig(**own["norm"])
        used = str(own["statistics"])
        classes = tuple(str(name) for name in written.get("label_names", ()))
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, LookupError, TypeError, ValueError, safetensors.SafetensorError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{folder} is not an export that can be read: {reason}; make it anew with "
            "scripts/export.py"
        ) from error
    if statistics not in (None, used):
        raise UserError(f"statistics={statistics}: {folder} was exported with {used}")
    try:
        network = rebuild(model, norm, weights)
    except UserError as error:
        raise UserError(f"{folder / WEIGHTS}: {error}") from error
    return SavedNetwork(network, model, norm, used, classes)


def described(saved: SavedNetwork) -> dict[str, Any]:
    """The entry ``sn_imagenet`` of an export's config.json, from which it is built again."""
    return {
        "version": VERSION,
        "model": asdict(saved.model),
        "norm": asdict(saved.norm),
        "statistics": saved.statistics,
    }
