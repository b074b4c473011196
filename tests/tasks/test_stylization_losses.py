"""The losses of stylization against their formulas in float64, and the weights of VGG16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sn_imagenet.data.sources.images import read_image
from sn_imagenet.errors import ConfigError
from sn_imagenet.tasks.stylization.perceptual import SCALES, PerceptualLoss, load_features

DATA = Path(__file__).parents[3] / "shared" / "data" / "stylization"
WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512}


def random_vgg() -> dict[str, Tensor]:
    """Weights of VGG16's layout from its input to conv4_3."""
    generator, state, inputs = torch.Generator().manual_seed(0), {}, 3
    for index, outputs in WIDTHS.items():
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        state[f"features.{index}.weight"] = weight * (2 / (9 * inputs)) ** 0.5
        state[f"features.{index}.bias"] = torch.randn(outputs, generator=generator) / 10
        inputs = outputs
    return state


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    torch.save({name: tensor.half() for name, tensor in random_vgg().items()}, path)
    return path


def vgg_formula(state: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    x, found = images, {}
    for index in WIDTHS:
        if index in (5, 10, 17):
            x = F.max_pool2d(x, 2)
        weight, bias = (state[f"features.{index}.{key}"].double() for key in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
        names = {2: "relu1_2", 7: "relu2_2", 14: "relu3_3", 21: "relu4_3"}
        found |= {names[index]: x} if index in names else {}
    return found


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("content_layer", ["relu2_2", "relu3_3"])
def test_the_losses_are_their_formulas(vgg: Path, scale: str, content_layer: str) -> None:
    generator = torch.Generator().manual_seed(2)
    output, content = torch.rand(2, 2, 3, 24, 16, generator=generator) * 255
    style = torch.rand(3, 17, 32, generator=generator) * 255
    loss = PerceptualLoss(load_features(str(vgg)), SCALES[scale], style, content_layer)
    feature_loss, style_loss = loss(output, content)

    mean, std = (torch.tensor(getattr(SCALES[scale], k)).double() for k in ("mean", "std"))
    state = torch.load(vgg)
    y, x, s = (
        vgg_formula(state, (images.double() - mean[:, None, None]) / std[:, None, None])
        for images in (output, content, style[None])
    )
    for n in range(2):
        gap = y[content_layer][n] - x[content_layer][n]
        assert feature_loss[n].item() == pytest.approx(gap.square().sum().item() / gap.numel())
        expected = 0.0
        for layer in y:
            a, b = y[layer][n].flatten(1).numpy(), s[layer][0].flatten(1).numpy()
            grams = [np.einsum("ik,jk->ij", f, f) / f.size for f in (a, b)]
            expected += np.mean((grams[0] - grams[1]) ** 2)
        assert style_loss[n].item() == pytest.approx(expected, rel=1e-4)


def test_losses_vanish_for_equal_images_and_reach_the_input(vgg: Path) -> None:
    style = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3)) * 255
    loss = PerceptualLoss(load_features(str(vgg)), SCALES["pixels"], style, "relu2_2")
    feature_loss, style_loss = loss(style[None], style[None])
    assert feature_loss.item() == 0 and style_loss.item() == pytest.approx(0, abs=1e-3)
    output = (style[None] / 2).requires_grad_()
    sum(loss(output, style[None])).backward()
    assert output.grad is not None and output.grad.abs().min() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_half_precision_does_not_reach_the_gram_matrices(vgg: Path) -> None:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 255
    loss = PerceptualLoss(load_features(str(vgg)), SCALES["pixels"], images[0] / 3, "relu2_2")
    expected = loss(images, images / 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(images, images / 2)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert a.item() == pytest.approx(b.item(), rel=0.05)


def test_total_variation_is_the_sum_over_neighbors() -> None:
    images = torch.tensor([[[[0.0, 1.0], [3.0, 7.0]]]])
    assert PerceptualLoss.total_variation(images).tolist() == [3**2 + 6**2 + 1**2 + 4**2]


def test_features_load_by_either_name_in_any_precision(vgg: Path, tmp_path: Path) -> None:
    state = {name.removeprefix("features."): t for name, t in torch.load(vgg).items()}
    state |= {"24.weight": torch.zeros(512, 512, 3, 3)}  # conv5_1, not used
    torch.save(state, tmp_path / "features.pth")
    first, second = load_features(str(vgg)), load_features(str(tmp_path / "features.pth"))
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "FileNotFoundError"),
        (b"no weights", "UnpicklingError"),
        ({"conv.weight": torch.zeros(1)}, "KeyError: 'features.0.weight'"),
        ({"features.2.weight": torch.zeros(64, 64, 1, 1)}, "RuntimeError: .*size mismatch"),
    ],
)
def test_other_files_are_no_features(
    content: object, reason: str, vgg: Path, tmp_path: Path
) -> None:
    path = tmp_path / "features.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        known = torch.load(vgg) if "features.2.weight" in content else {}
        torch.save({**known, **content}, path)
    with pytest.raises(
        ConfigError, match=rf"cannot be read as weights of VGG16 \({reason}"
    ) as error:
        load_features(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_the_original_features_have_the_scale_of_pixels() -> None:
    file = DATA / "vgg16_features_conv4_3_fp16.pth"
    if not file.is_file():
        pytest.skip("the weights of VGG16 are not available")
    picture = read_image(DATA / "content" / "chicago.jpg")
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float()
    loss = PerceptualLoss(load_features(str(file)), SCALES["pixels"], pixels, "relu2_2")
    with torch.no_grad():
        found = loss.layers(pixels[None], "relu2_2")["relu2_2"]
    assert 250 < found.square().mean().sqrt() < 500  # 367 over many photographs
