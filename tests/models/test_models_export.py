"""What is exported is loaded again, here and by timm, and computes the same logits."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from trained_runs import CLASSES, Trained

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.models import build_model, load, start_from
from sn_imagenet.models import export as exporting
from sn_imagenet.models.export import crop_share, export
from sn_imagenet.norms import SwitchNorm2d

Train = Callable[..., Trained]
TIMMS = "model.name=test_resnet"  # timm's smallest ResNet
MOVING = "moving_average"


def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = network(images)
    return result


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def code(exported: exporting.Exported, who: str, out: Path) -> nn.Module:
    """The network that the card's code loads."""
    (text,) = (text for reader, text in exported.loading if who in reader)
    names: dict[str, Any] = {}
    exec(text.replace("FOLDER", str(out)), names)
    network: nn.Module = names["network"]
    assert not network.training
    return network


@pytest.mark.parametrize("model", ["model=resnet14_mini", TIMMS, "model.name=regnetx_002"])
@pytest.mark.parametrize("norm", ["bn", "sn"])
def test_an_export_is_loaded_again(
    trained: Train, images: Tensor, tmp_path: Path, model: str, norm: str
) -> None:
    run = trained(model, f"norm={norm}")
    expected = logits(run.network, images)
    torch.testing.assert_close(logits(load(run.path, MOVING), images), expected, rtol=0, atol=0)
    exported = export(run.path, tmp_path / "out", MOVING)
    again = load(tmp_path / "out")
    torch.testing.assert_close(logits(again, images), expected, rtol=0, atol=0)
    assert list(again.state_dict()) == list(run.network.state_dict())
    assert set(exported.files) == {path.name for path in (tmp_path / "out").iterdir()}
    same = code(exported, "sn-imagenet", tmp_path / "out")
    torch.testing.assert_close(logits(same, images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["sn", "in"])
def test_timm_loads_it_with_the_layer(
    trained: Train, images: Tensor, tmp_path: Path, norm: str
) -> None:
    run = trained(TIMMS, f"norm={norm}")
    out = tmp_path / "out"
    exported = export(run.path, out, MOVING if norm == "sn" else None)
    expected = logits(run.network, images)
    from_folder = code(exported, "timm and the layer", out)
    torch.testing.assert_close(logits(from_folder, images), expected, rtol=1e-5, atol=1e-4)
    if norm == "sn":
        theirs = timm.create_model("test_resnet", num_classes=len(CLASSES), norm_layer=SwitchNorm2d)
        theirs.load_state_dict(safetensors.torch.load_file(out / "model.safetensors"))
        actual = logits(theirs.eval(), images)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


ALONE = """
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
# timm's GN has 32 groups and takes no width that they do not divide.
WIDE = ("+model.args.channels=[32,32,64,64]", "+model.args.stem_width=32")
PLAIN = {"bn": (), "brn": (), "sync_bn": (), "frozen_bn": (), "ln": (), "gn": WIDE}


def test_plain_timm_loads_what_it_computes_too(
    trained: Train, images: Tensor, tmp_path: Path
) -> None:
    torch.save(images, tmp_path / "images.pt")
    networks = {}
    for norm, model in PLAIN.items():
        run = trained(TIMMS, f"norm={norm}", *model)
        networks[norm] = run.network
        exported = export(run.path, tmp_path / norm, MOVING if norm in ("bn", "brn") else None)
        assert [who for who, _ in exported.loading] == ["With sn-imagenet:", "With timm alone:"]
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path), *PLAIN], check=True, timeout=300)
    found = torch.load(tmp_path / "logits.pt")
    for norm, network in networks.items():
        torch.testing.assert_close(found[norm], logits(network, images), rtol=1e-4, atol=1e-4)


def test_timm_is_not_named_where_its_layer_computes_something_else(
    trained: Train, tmp_path: Path
) -> None:
    run = trained(TIMMS, "norm=gn", "norm.args.num_groups=8")
    exported = export(run.path, tmp_path / "out")
    assert [who for who, _ in exported.loading] == [
        "With sn-imagenet:",
        "With timm and the layer:",
    ]
    assert "norm_layer" not in json.loads((tmp_path / "out/config.json").read_text())["model_args"]


def test_the_layout_is_timms(trained: Train, tmp_path: Path) -> None:
    sizes = ("data.image_size=24", "data.resize_size=29")
    run = trained(TIMMS, "norm=bn", *sizes, "data.mean=[0.1,0.2,0.3]")
    export(run.path, tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    prepared = resolve_model_data_config(network)
    assert prepared["input_size"] == [3, 24, 24]
    assert math.floor(24 / prepared["crop_pct"]) == 29
    assert (prepared["interpolation"], prepared["mean"]) == ("bilinear", [0.1, 0.2, 0.3])
    assert network.pretrained_cfg["label_names"] == list(CLASSES)
    # Another head, as timm fine-tunes.
    tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert tuned.num_classes == 3


def test_every_resize_size_survives() -> None:
    for image_size in range(8, 400, 8):
        for resize_size in range(image_size, 2 * image_size):
            assert math.floor(image_size / crop_share(image_size, resize_size)) == resize_size


@pytest.mark.slow
def test_programs_take_any_batch_and_an_older_one_goes(
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
    (found,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)
    assert export(run.path, out).files.keys() == {"model.safetensors", "config.json"}
    assert not (out / "model.pt2").exists()


class _Small(nn.Module):
    """SN as a fused block has it: with a ReLU, and with a shortcut before it."""

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
def test_programs_hold_switchable_normalization(images: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    network = _Small().eval()
    with torch.no_grad():
        for value in (*network.parameters(), network.last.running_var):
            value.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    assert exporting._write_pt2(network, images, tmp_path / "model.pt2") <= 1e-5
    assert exporting._write_onnx(network, images, tmp_path / "model.onnx") <= 1e-5


def test_a_program_that_computes_something_else_is_not_written(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting._write_pt2

    def wrong(network: nn.Module, images: Tensor, path: Path) -> float:
        return write(nn.Linear(16, 16), images, path) + 1e3

    monkeypatch.setattr(exporting, "_write_pt2", wrong)
    with pytest.raises(UserError, match=r"model\.pt2 computes logits that differ by 1e\+03"):
        export(trained("norm=bn").path, tmp_path / "out", pt2=True)
    assert not (tmp_path / "out/model.pt2").exists()


def test_what_is_not_there_is_told(trained: Train, tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match="is an export itself"):
        export(out, tmp_path / "again")
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="is not an export that can be read"):
        load(out)
    (run / "final.pt").unlink()
    with pytest.raises(UserError, match="not trained to its end"):
        load(run, MOVING)


def test_a_start_keeps_the_head_of_the_same_classes(
    trained: Train, composed: Callable[..., ExperimentConfig]
) -> None:
    run = trained("norm=bn")
    config = composed("data=digits", "model=resnet14_mini", "norm=bn")

    def started(*classes: str, norm: str = "bn") -> tuple[nn.Module, list[str]]:
        protocol = composed("data=digits", f"norm={norm}")
        network = build_model(config.model, protocol.norm, config.protocol, len(classes), seed=3)
        return network, start_from(run.path, network, protocol.norm, classes)

    theirs = run.network.state_dict()
    same, nothing = started(*CLASSES)
    assert not nothing
    for name, value in same.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    for classes in (CLASSES[::-1], CLASSES[:2]):  # as many others, and fewer
        network, (changed,) = started(*classes)
        assert changed == "a new fc, since its classes are others"
        own = network.state_dict()
        fresh = build_model(config.model, config.norm, config.protocol, len(classes), seed=3)
        assert torch.equal(own["fc.weight"], fresh.state_dict()["fc.weight"])
        assert torch.equal(own["layer4.0.bn1.running_var"], theirs["layer4.0.bn1.running_var"])
    with pytest.raises(ConfigError, match=r"norm=bn, is not this one: .*mean_weight"):
        started(*CLASSES, norm="sn")
