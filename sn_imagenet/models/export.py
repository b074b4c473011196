"""Export a trained network: timm's hub layout, torch.export, ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from sn_imagenet.config import DataConfig, NormConfig
from sn_imagenet.errors import UserError
from sn_imagenet.models.build import norm_layer
from sn_imagenet.models.saved import (
    CONFIG,
    WEIGHTS,
    SavedWeights,
    classifier_of,
    config_entry,
    is_classifier,
    read_saved,
    write_weights,
)
from sn_imagenet.models.transform_net import TransformNet
from sn_imagenet.models.weight_norm import convolutions
from sn_imagenet.runs import write_atomically, write_json

PT2 = "model.pt2"
ONNX = "model.onnx"
OPSET = 20
TOLERANCE = 1e-4  # largest error of outputs, relative to the largest of the network's
_OPTION = "--out"
_TIMM_CODE = """import timm
{imports}
network = timm.create_model("local-dir:FOLDER", pretrained=True{layer}).eval()
"""


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote, for the model card.

    ``statistics``: the kind of BN statistics in the weights. ``loading``: (heading, Python code) of
    each tested way to load the weights. ``files``: name -> description.
    """

    architecture: str
    statistics: str
    loading: list[tuple[str, str]]
    files: dict[str, str]


def export(
    run: Path, out: Path, statistics: str | None = None, *, pt2: bool = False, onnx: bool = False
) -> Exported:
    """Write ``model.safetensors`` and ``config.json`` in the layout of timm's hub, and with ``pt2``
    and ``onnx`` programs for any batch size that need no model code. Files of an older export in
    ``out`` are replaced or removed.

    Args:
        run: the directory of a finished run.
        statistics: as in :func:`~sn_imagenet.models.load`; written as running statistics.

    Raises:
        UserError: the run cannot be exported, the ``export`` extra is missing, or the outputs of a
            program differ from the network's by more than 1e-4 of the largest.
    """
    if onnx:
        _require_onnx()
    network, saved = read_saved(run, statistics)
    if saved.data is None:
        raise UserError(f"{run} is already an export: copy it, or export the run that it is from")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder")
    norm, data = _folded(network, saved.norm), saved.data
    saved = replace(saved, norm=norm)
    size = (2, 3, data.image_size, data.image_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images)
    arguments, loading = _loading_instructions(network, saved, images, logits)
    write_weights(network, out)
    write_json(out / CONFIG, _config(network, saved, data, arguments), _OPTION)
    files = {WEIGHTS: "the weights", CONFIG: "architecture, preprocessing, normalization layer"}
    output = _output(network)
    sizes = "any batch size" + ("" if is_classifier(network) else " and multiples of 4 pixels")
    for requested, name, form, write in (
        (pt2, PT2, "torch.export", _write_pt2),
        (onnx, ONNX, f"ONNX, opset {OPSET}", _write_onnx),
    ):
        if not requested:
            (out / name).unlink(missing_ok=True)  # an older export has other weights
            continue
        with TemporaryDirectory() as folder:
            program = write(network, images, Path(folder) / name)
            difference = max(
                _largest_difference(program(batch), network(batch))
                for batch in (images[:1], torch.cat([images, images.flip(2), images[:1].flip(3)]))
            )
            if not difference <= _bound(logits):
                raise UserError(
                    f"{name} computes outputs that differ by {difference:.2g} from the network's, "
                    f"more than {_bound(logits):.2g}. It was not written; export without it"
                )
            write_atomically(out / name, (Path(folder) / name).read_bytes(), _OPTION)
        about = f"{form}, for {sizes}; input images, output {output}"
        files[name] = f"{about}, which differ by up to {difference:.1g}"
    return Exported(saved.model.name, saved.statistics, loading, files)


def _folded(network: nn.Module, norm: NormConfig) -> NormConfig:
    """``norm``, after giving the convolutions plain weights if they are normalized."""
    convs = [conv for conv in convolutions(network) if is_parametrized(conv)]
    for conv in convs:
        remove_parametrizations(conv, "weight")
    return replace(norm, args={**norm.args, "folded": True}) if convs else norm


def _config(
    network: Any, saved: SavedWeights, data: DataConfig, arguments: dict[str, Any]
) -> dict[str, Any]:
    """config.json: under ``sn_imagenet`` what :func:`load` needs; for a classifier also timm's
    entries."""
    entry = {"architecture": saved.model.name, "sn_imagenet": config_entry(saved)}
    if not is_classifier(network):
        return entry
    timm_cfg = getattr(network, "default_cfg", None) or {}
    config: dict[str, Any] = {
        **entry,
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, data.image_size, data.image_size],
            "fixed_input_size": False,
            "interpolation": data.interpolation or "bilinear",
            "crop_pct": crop_pct(data.image_size, data.resize_size),
            "crop_mode": "center",
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": network.num_classes,
            "classifier": classifier_of(network),
            **({"first_conv": timm_cfg["first_conv"]} if "first_conv" in timm_cfg else {}),
        },
    }
    if saved.classes:
        config["label_names"] = list(saved.classes)
    return config


def crop_pct(image_size: int, resize_size: int) -> float:
    """timm's ``crop_pct``: timm resizes the shorter side to floor(image_size / crop_pct)."""
    fraction = image_size / resize_size
    while math.floor(image_size / fraction) < resize_size:
        fraction = math.nextafter(fraction, 0)
    return fraction


def _loading_instructions(
    network: Any, saved: SavedWeights, images: Tensor, logits: Tensor
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """timm's ``model_args`` for this network, and :attr:`Exported.loading`."""
    with_load = (
        "With sn-imagenet:",
        'from sn_imagenet.models import load\n\nnetwork = load("FOLDER")\n',
    )
    architecture, model_args = saved.model.name, dict(saved.model.args)
    layer = norm_layer(saved.norm)

    def agrees(arguments: dict[str, Any]) -> bool:
        """Whether timm builds this network with ``arguments`` and computes the same ``logits``."""
        if not timm.is_model(architecture):
            return False
        try:
            theirs = timm.create_model(architecture, num_classes=network.num_classes, **arguments)
            theirs.load_state_dict(network.state_dict())
        except Exception:  # timm cannot build it, for whatever reason
            return False
        with torch.no_grad():
            return _largest_difference(theirs.eval()(images), logits) <= _bound(logits)

    for own in (None, "groupnorm", "groupnorm1"):  # timm's batch norm, GN and LN
        arguments = {**model_args, **({"norm_layer": own} if own else {})}
        if agrees(arguments):
            code = _TIMM_CODE.format(imports="", layer="")
            return arguments, [with_load, ("With timm alone:", code)]
    if agrees({**model_args, "norm_layer": layer}):
        module, _, name = saved.norm.target.rpartition(".")
        keywords = "".join(f", {key}={value!r}" for key, value in layer.keywords.items())
        expression = f"partial({name}{keywords})" if keywords else name
        code = _TIMM_CODE.format(
            imports=f"from {module} import {name}\n", layer=f", norm_layer={expression}"
        )
        partial_import = "from functools import partial\n\n" if keywords else ""
        return model_args, [with_load, ("With timm and the layer:", partial_import + code)]
    return model_args, [with_load]


def _write_pt2(network: nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """Write the program; returns it as it is read again."""
    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=_dynamic_shapes(network))
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _write_onnx(network: nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    with torch.no_grad():
        torch.onnx.export(
            network,
            (images,),
            path,
            input_names=["images"],
            output_names=[_output(network)],
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=_dynamic_shapes(network),
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def _dynamic_shapes(network: nn.Module) -> tuple[dict[int, Any]]:
    shapes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if isinstance(network, TransformNet):
        shapes |= {2: 4 * torch.export.Dim("height"), 3: 4 * torch.export.Dim("width")}
    return (shapes,)


def _output(network: nn.Module) -> str:
    return "logits" if is_classifier(network) else "images_out"


def _bound(logits: Tensor) -> float:
    return TOLERANCE * max(1.0, logits.abs().max().item())


@torch.no_grad()
def _largest_difference(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--onnx needs {error.name}: pip install -e '.[export]', or export without --onnx"
        ) from error
