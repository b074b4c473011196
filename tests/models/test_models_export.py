"""sn-imagenet and timm load an export and compute the same logits."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from trained_runs import CLASSES, Trained

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.models import build_model, load, read_weights
from sn_imagenet.models import export as exporting
from sn_imagenet.models.export import crop_pct, export
from sn_imagenet.norms import SwitchNorm2d, norm_layers
from sn_imagenet.tasks.classification import Classification

Train = Callable[..., Trained]
TIMM_MODEL = "model.name=test_resnet"  # timm's smallest ResNet
MOVING = "moving_average"


def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = network(images)
    return result


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network_of_card(exported: exporting.Exported, reader: str, out: Path) -> nn.Module:
    """The network that the model card's code for ``reader`` loads."""
    (code,) = (code for heading, code in exported.loading if reader in heading)
    namespace: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(out)), namespace)
    network: nn.Module = namespace["network"]
    assert not network.training
    return network


MODELS = ("model=resnet14_mini", TIMM_MODEL, "model.name=regnetx_002")
WN_WITH_BN = ("norm=wn", "norm.args.mean_only_bn=true", "norm.test_statistics=moving_average")
RIVALS = [*((f"norm={norm}",) for norm in ("ssn", "bin", "frn", "ebn", "wn")), WN_WITH_BN]
EXPORTED = [(model, (f"norm={norm}",)) for model in MODELS for norm in ("bn", "sn")]
EXPORTED += [(model, rival) for model in MODELS[:2] for rival in RIVALS]


@pytest.mark.parametrize(("model", "overrides"), EXPORTED, ids=str)
def test_an_export_loads_and_computes_the_same_logits(
    trained: Train, images: Tensor, tmp_path: Path, model: str, overrides: tuple[str, ...]
) -> None:
    run, out = trained(model, *overrides), tmp_path / "out"
    stores = any(layer.stores_statistics for layer in norm_layers(run.network).values())
    statistics = MOVING if stores else None
    expected = logits(run.network, images)
    torch.testing.assert_close(logits(load(run.path, statistics), images), expected, rtol=0, atol=0)
    exported = export(run.path, out, statistics)
    loaded = load(out)
    torch.testing.assert_close(logits(loaded, images), expected)
    assert not any(map(is_parametrized, loaded.modules()))
    assert set(exported.files) == {path.name for path in out.iterdir()}
    from_card = network_of_card(exported, "sn-imagenet", out)
    torch.testing.assert_close(logits(from_card, images), expected)
    if overrides[0] == "norm=frn":  # timm alone does not build its threshold
        assert len(exported.loading) == 1


@pytest.mark.parametrize("norm", ["sn", "in"])
def test_timm_loads_an_export_with_the_layer(
    trained: Train, images: Tensor, tmp_path: Path, norm: str
) -> None:
    run = trained(TIMM_MODEL, f"norm={norm}")
    out = tmp_path / "out"
    exported = export(run.path, out, MOVING if norm == "sn" else None)
    expected = logits(run.network, images)
    from_card = network_of_card(exported, "timm and the layer", out)
    torch.testing.assert_close(logits(from_card, images), expected, rtol=1e-5, atol=1e-4)
    if norm == "sn":
        theirs = timm.create_model("test_resnet", num_classes=len(CLASSES), norm_layer=SwitchNorm2d)
        theirs.load_state_dict(safetensors.torch.load_file(out / "model.safetensors"))
        actual = logits(theirs.eval(), images)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


TIMM_ALONE = """
import sys
sys.modules["sn_imagenet"] = None  # cannot be imported
import timm, torch
folder, *names = sys.argv[1:]
images = torch.load(f"{folder}/images.pt")
with torch.no_grad():
    torch.save({
        name: timm.create_model(f"local-dir:{folder}/{name}", pretrained=True).eval()(images)
        for name in names
    }, f"{folder}/logits.pt")
"""
# timm's GN has 32 groups, which must divide the number of channels.
WIDTHS = ("+model.args.channels=[32,32,64,64]", "+model.args.stem_width=32")
TIMM_NORMS = {"bn": (), "brn": (), "sync_bn": (), "frozen_bn": (), "ln": (), "gn": WIDTHS}


def test_timm_alone_loads_the_methods_that_it_has(
    trained: Train, images: Tensor, tmp_path: Path
) -> None:
    torch.save(images, tmp_path / "images.pt")
    networks = {}
    for norm, model in TIMM_NORMS.items():
        run = trained(TIMM_MODEL, f"norm={norm}", *model)
        networks[norm] = run.network
        exported = export(run.path, tmp_path / norm, MOVING if norm in ("bn", "brn") else None)
        assert [name for name, _ in exported.loading] == ["With sn-imagenet:", "With timm alone:"]
    command = [sys.executable, "-c", TIMM_ALONE, str(tmp_path), *TIMM_NORMS]
    subprocess.run(command, check=True, timeout=300)
    timm_logits = torch.load(tmp_path / "logits.pt")
    for norm, network in networks.items():
        torch.testing.assert_close(timm_logits[norm], logits(network, images), rtol=1e-4, atol=1e-4)


def test_timm_alone_is_not_offered_where_its_layer_computes_something_else(
    trained: Train, tmp_path: Path
) -> None:
    run = trained(TIMM_MODEL, "norm=gn", "norm.args.num_groups=8")
    exported = export(run.path, tmp_path / "out")
    assert [name for name, _ in exported.loading] == [
        "With sn-imagenet:",
        "With timm and the layer:",
    ]
    assert "norm_layer" not in json.loads((tmp_path / "out/config.json").read_text())["model_args"]


def test_an_export_has_timms_layout(trained: Train, tmp_path: Path) -> None:
    sizes = ("data.image_size=24", "data.resize_size=29")
    run = trained(TIMM_MODEL, "norm=bn", *sizes, "data.mean=[0.1,0.2,0.3]")
    export(run.path, tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    prepared = resolve_model_data_config(network)
    assert prepared["input_size"] == [3, 24, 24]
    assert math.floor(24 / prepared["crop_pct"]) == 29
    assert (prepared["interpolation"], prepared["mean"]) == ("bilinear", [0.1, 0.2, 0.3])
    assert network.pretrained_cfg["label_names"] == list(CLASSES)
    # With a new head, as for fine-tuning with timm.
    tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert tuned.num_classes == 3


def test_the_crop_share_restores_every_resize_size() -> None:
    for image_size in range(8, 400, 8):
        for resize_size in range(image_size, 2 * image_size):
            assert math.floor(image_size / crop_pct(image_size, resize_size)) == resize_size


@pytest.mark.slow
def test_programs_take_any_batch_size_and_a_new_export_deletes_old_ones(
    trained: Train, images: Tensor, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    run = trained("norm=bn")
    out = tmp_path / "out"
    exported = export(run.path, out, pt2=True, onnx=True)
    assert {"model.pt2", "model.onnx"} < exported.files.keys()
    expected = logits(run.network, images)
    program = torch.export.load(out / "model.pt2").module()
    torch.testing.assert_close(logits(program, images), expected, rtol=0, atol=1e-4)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (onnx_logits,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(onnx_logits), expected, rtol=0, atol=1e-4)
    assert export(run.path, out).files.keys() == {"model.safetensors", "config.json"}
    assert not (out / "model.pt2").exists()


class _FusedSwitchNorms(nn.Module):
    """SN as in a fused block: before a ReLU, and before a shortcut's sum and its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SwitchNorm2d(3)
        self.first.relu = True
        self.last = SwitchNorm2d(3, omega=["in", "ln", "bn", "gn"])
        self.last.relu = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x), x)
        return y


@pytest.mark.slow
def test_programs_compute_switchable_normalization(images: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    network = _FusedSwitchNorms().eval()
    with torch.no_grad():
        for value in (*network.parameters(), network.last.running_var):
            value.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    for write in (exporting._write_pt2, exporting._write_onnx):
        program = write(network, images, tmp_path / "program")
        for batch in (images, images[:1]):
            torch.testing.assert_close(program(batch), network(batch), rtol=0, atol=1e-5)


def test_a_program_that_computes_something_else_is_not_written(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrong(network: nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
        return lambda batch: network(batch) + 1e3

    monkeypatch.setattr(exporting, "_write_pt2", write_wrong)
    with pytest.raises(UserError, match=r"model\.pt2 computes outputs that differ by 1e\+03"):
        export(trained("norm=bn").path, tmp_path / "out", pt2=True)
    assert not (tmp_path / "out/model.pt2").exists()


def test_loading_and_exporting_name_what_is_missing(trained: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trained network there; expected a run directory"):
        load(tmp_path)
    run = trained("norm=sn").path
    with pytest.raises(UserError, match="has no batch average"):
        load(run)
    with pytest.raises(UserError, match=r"statistics=sample: .* moving_average and batch_average"):
        load(run, "sample")
    with pytest.raises(UserError, match=r"statistics=moving_average: .* has sample only"):
        load(trained("norm=gn").path, MOVING)
    out = tmp_path / "out"
    export(run, out, MOVING)
    with pytest.raises(UserError, match="exported with moving_average"):
        load(out, "batch_average")
    with pytest.raises(UserError, match="is already an export"):
        export(out, tmp_path / "again")
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="is not a readable export"):
        load(out)
    (run / "final.pt").unlink()
    with pytest.raises(UserError, match="training has not finished"):
        load(run, MOVING)


def test_fine_tuning_keeps_the_head_if_the_classes_are_the_same(
    trained: Train, composed: Callable[..., ExperimentConfig]
) -> None:
    run = trained("norm=bn")
    config = composed("data=digits", "model=resnet14_mini", "norm=bn")

    def build_and_start(*classes: str, norm: str = "bn") -> tuple[nn.Module, list[str]]:
        method = composed("data=digits", f"norm={norm}").norm
        network = build_model(config.model, method, config.protocol, len(classes), seed=3)
        data: Any = SimpleNamespace(classes=classes)
        return network, Classification(config).load_initial(network, data, read_weights(run.path))

    theirs = run.network.state_dict()
    same, no_changes = build_and_start(*CLASSES)
    assert not no_changes
    for name, value in same.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    for classes in (CLASSES[::-1], CLASSES[:2]):  # as many other classes, and fewer
        network, (change,) = build_and_start(*classes)
        assert change == "a new fc, because its classes differ"
        state = network.state_dict()
        fresh = build_model(config.model, config.norm, config.protocol, len(classes), seed=3)
        assert torch.equal(state["fc.weight"], fresh.state_dict()["fc.weight"])
        assert torch.equal(state["layer4.0.bn1.running_var"], theirs["layer4.0.bn1.running_var"])
    with pytest.raises(
        ConfigError, match=r"bn1\.mean_weight missing there, \[3\] here;.* and \d+ more"
    ):
        build_and_start(*CLASSES, norm="sn")
