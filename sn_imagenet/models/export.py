"""A trained network in files that others read: timm's hub layout, torch.export, ONNX."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from sn_imagenet.config import DataConfig
from sn_imagenet.errors import UserError
from sn_imagenet.models.build import norm_layer
from sn_imagenet.models.saved import (
    CONFIG,
    WEIGHTS,
    SavedNetwork,
    classifier_of,
    described,
    read_saved,
)
from sn_imagenet.norms import GroupNorm2d, LayerNorm2d
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.runs import write_atomically, write_text

PT2 = "model.pt2"
ONNX = "model.onnx"
OPSET = 20
TOLERANCE = 1e-4  # of what a written program computes, against the largest logit
_CHOSEN_BY = "--out"
_PROGRAMS = {
    PT2: "a program of torch.export for any batch size, for torch.export.load",
    ONNX: f"ONNX, opset {OPSET}, any batch size; input images, output logits",
}
_TIMM = """import timm
{imports}
network = timm.create_model("local-dir:FOLDER", pretrained=True{layer}).eval()
"""

# What timm calls the same computation; None is its own batch norm.
_OF_TIMM: dict[type[nn.Module], str | None] = {
    **{METHODS[name]: None for name in ("bn", "brn", "sync_bn", "frozen_bn")},
    GroupNorm2d: "groupnorm",
    LayerNorm2d: "groupnorm1",
}


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote, as a model card says it.

    ``statistics``: of BN in evaluation, in the weights. ``loading``: (for whom, Python) of each
    way to load them that was tried. ``files``: by name, what each is.
    """

    architecture: str
    statistics: str
    loading: list[tuple[str, str]]
    files: dict[str, str]


def export(
    run: Path, out: Path, statistics: str | None = None, *, pt2: bool = False, onnx: bool = False
) -> Exported:
    """Write ``model.safetensors`` and ``config.json`` in the layout of timm's hub, and with ``pt2``
    and ``onnx`` programs for any batch size that need no model code. ``out`` may hold an older
    export, whose files give way.

    Args:
        run: the directory of a run that is trained to its end.
        statistics: as :func:`~sn_imagenet.models.load`; written as the running ones.

    Raises:
        UserError: the run cannot be exported so, the ``export`` extra is missing, or a program does
            not compute what the network does, within 1e-4 of the largest logit.
    """
    if onnx:
        _require_onnx()
    saved = read_saved(run, statistics)
    if saved.data is None:
        raise UserError(f"{run} is an export itself: copy it, or export the run that it came from")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a folder")
    network, data = saved.network, saved.data
    size = (2, 3, data.image_size, data.image_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images)
    arguments, loading = _ways_to_load(saved, images, logits)
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    packed = safetensors.torch.save(weights, {"format": "pt"})
    write_atomically(out / WEIGHTS, packed, _CHOSEN_BY)
    config = json.dumps(_config(saved, data, arguments), indent=2) + "\n"
    write_text(out / CONFIG, config, _CHOSEN_BY)
    files = {WEIGHTS: "the weights", CONFIG: "architecture, preprocessing, normalizer"}
    for wanted, name, write in ((pt2, PT2, _write_pt2), (onnx, ONNX, _write_onnx)):
        if not wanted:
            (out / name).unlink(missing_ok=True)  # an older export's would be of other weights
            continue
        with TemporaryDirectory() as folder:
            made = Path(folder) / name
            difference = write(network, images, made)
            _require_agreement(name, difference, logits)
            write_atomically(out / name, made.read_bytes(), _CHOSEN_BY)
        files[name] = f"{_PROGRAMS[name]}; its logits differ by up to {difference:.1g}"
    return Exported(saved.model.name, saved.statistics, loading, files)


def _config(saved: SavedNetwork, data: DataConfig, arguments: dict[str, Any]) -> dict[str, Any]:
    """config.json: timm's entries, and under ``sn_imagenet`` what builds the network here."""
    network: Any = saved.network
    of_timm = getattr(network, "default_cfg", None) or {}
    config: dict[str, Any] = {
        "architecture": saved.model.name,
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, data.image_size, data.image_size],
            "fixed_input_size": False,
            "interpolation": data.interpolation or "bilinear",
            "crop_pct": crop_share(data.image_size, data.resize_size),
            "crop_mode": "center",
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": network.num_classes,
            "classifier": classifier_of(network),
            **({"first_conv": of_timm["first_conv"]} if "first_conv" in of_timm else {}),
        },
        "sn_imagenet": described(saved),
    }
    if saved.classes:
        config["label_names"] = list(saved.classes)
    return config


def crop_share(image_size: int, resize_size: int) -> float:
    """timm's ``crop_pct``: it resizes the shorter side to floor(image_size / crop_pct)."""
    share = image_size / resize_size
    while math.floor(image_size / share) < resize_size:
        share = math.nextafter(share, 0)
    return share


def _ways_to_load(
    saved: SavedNetwork, images: Tensor, logits: Tensor
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """timm's ``model_args`` for this network, and :attr:`Exported.loading`."""
    here = (
        "With sn-imagenet:",
        'from sn_imagenet.models import load\n\nnetwork = load("FOLDER")\n',
    )
    own = dict(saved.model.args)
    layer = norm_layer(saved.norm)
    if layer.func in _OF_TIMM:
        name = _OF_TIMM[layer.func]
        arguments = {**own, **({"norm_layer": name} if name else {})}
        if _timm_computes(saved, arguments, images, logits):
            return arguments, [here, ("With timm alone:", _TIMM.format(imports="", layer=""))]
    if _timm_computes(saved, {**own, "norm_layer": layer}, images, logits):
        module, _, _ = saved.norm.target.rpartition(".")
        imports = f"from {module} import {saved.norm.target.rpartition('.')[2]}\n"
        partial_of = "from functools import partial\n\n" if layer.keywords else ""
        code = _TIMM.format(imports=imports, layer=f", norm_layer={_expression(layer)}")
        return own, [here, ("With timm and the layer:", partial_of + code)]
    return own, [here]


def _timm_computes(
    saved: SavedNetwork, arguments: dict[str, Any], images: Tensor, logits: Tensor
) -> bool:
    if not timm.is_model(saved.model.name):
        return False
    classes = saved.network.num_classes
    try:
        network = timm.create_model(saved.model.name, num_classes=classes, **arguments)
        network.load_state_dict(saved.network.state_dict())
    except Exception:  # whatever timm has against it: that it cannot is the answer
        return False
    with torch.no_grad():
        theirs = network.eval()(images)
    return _largest_difference(theirs, logits) <= TOLERANCE * max(1.0, logits.abs().max().item())


def _write_pt2(network: nn.Module, images: Tensor, path: Path) -> float:
    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=_any_batch())
    torch.export.save(program, path)
    written = torch.export.load(path).module()
    return max(
        _largest_difference(written(batch), network(batch)) for batch in _other_batches(images)
    )


def _write_onnx(network: nn.Module, images: Tensor, path: Path) -> float:
    import onnxruntime

    with torch.no_grad():
        torch.onnx.export(
            network,
            (images,),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=_any_batch(),
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return max(
        _largest_difference(
            torch.from_numpy(session.run(None, {"images": batch.numpy()})[0]), network(batch)
        )
        for batch in _other_batches(images)
    )


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch")},)


def _other_batches(images: Tensor) -> tuple[Tensor, ...]:
    return images[:1], torch.cat([images, images.flip(2), images[:1].flip(3)])


def _require_agreement(name: str, difference: float, logits: Tensor) -> None:
    bound = TOLERANCE * max(1.0, logits.abs().max().item())
    if not difference <= bound:
        raise UserError(
            f"{name} computes logits that differ by {difference:.2g} from the network's, more than "
            f"{bound:.2g}: it was not written; export without it"
        )


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


def _expression(layer: partial[Any]) -> str:
    """``partial(SwitchNorm2d, omega=['in', 'ln'])``, or the class's name alone."""
    name = layer.func.__name__
    arguments = "".join(f", {key}={value!r}" for key, value in layer.keywords.items())
    return f"partial({name}{arguments})" if arguments else name
