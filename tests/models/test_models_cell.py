"""Networks of repeated cells: shared weights, one architecture, and its file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import build_model
from sn_imagenet.models.cell import Cell, CellNetwork, build_cells
from sn_imagenet.norms import BatchNorm2d, norm_layers

Compose = Callable[..., ExperimentConfig]
# Two blocks: all five operations, an input that no block uses, and one that two blocks use.
ARCHITECTURE = {
    "normal": [[1, "sep3x3", 1, "avg3x3"], [2, "max3x3", 1, "identity"]],
    "reduction": [[0, "sep5x5", 1, "sep3x3"], [0, "avg3x3", 1, "max3x3"]],
}
BATCH = partial(BatchNorm2d, track_running_stats=False)


def images(side: int = 16) -> Tensor:
    return torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(0))


def batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


@torch.no_grad()
def test_a_cell_is_the_sum_of_its_operations() -> None:
    torch.manual_seed(0)
    blocks = ARCHITECTURE["normal"]
    cell = Cell(4, blocks, BATCH).double()
    first, second = torch.randn(2, 5, 4, 6, 6, dtype=torch.float64)
    weights = {name: p for name, p in cell.named_parameters() if p.dim() == 4}

    def separable(x: Tensor, name: str) -> Tensor:
        for depthwise, pointwise in ((1, 2), (5, 6)):
            spatial = weights[f"operations.{name}.{depthwise}.weight"]
            x = F.conv2d(x.relu(), spatial, padding=spatial.shape[2] // 2, groups=4)
            x = batch_norm(F.conv2d(x, weights[f"operations.{name}.{pointwise}.weight"]))
        return x

    ones = F.avg_pool2d(torch.ones_like(second), 3, 1, 1)
    block = separable(second, "0_0_1_sep3x3") + F.avg_pool2d(second, 3, 1, 1) / ones
    last = F.max_pool2d(block, 3, 1, 1) + second
    unused = torch.cat([first, last], 1)  # no block uses input 0 and the last block
    kernel = torch.cat([weights[f"outputs.{i}.weight"] for i in (0, 3)], 1)
    expected = batch_norm(F.conv2d(unused.relu(), kernel))
    torch.testing.assert_close(cell(first, second, blocks), expected)
    assert list(cell.operations) == ["0_0_1_sep3x3"]


@pytest.mark.parametrize("side", [16, 13])
def test_an_architecture_alone_equals_the_shared_network(side: int) -> None:
    torch.manual_seed(0)
    shared = CellNetwork(10, cells=3, filters=4, blocks=2)
    alone = build_cells(10, BATCH, architecture=ARCHITECTURE, cells=3, filters=4)
    weights = shared.state_dict()
    alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
    assert len(alone.state_dict()) < len(weights) / 2
    logits, expected = alone(images(side)), shared(images(side), ARCHITECTURE)
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in shared.named_parameters():
        of_alone = dict(alone.named_parameters()).get(name)
        if of_alone is None:
            assert parameter.grad is None, f"{name} is not used"
        else:
            torch.testing.assert_close(parameter.grad, of_alone.grad, rtol=1e-3, atol=1e-4)


def test_reductions_halve_maps_and_double_channels() -> None:
    network = CellNetwork(10, cells=6, filters=4, blocks=1)
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for kind, cell in zip(network.kinds, network.cells, strict=True):
        cell.register_forward_hook(
            lambda cell, inputs, out, kind=kind: shapes.append((kind, tuple(out.shape[1:])))
        )
    block = [[0, "sep3x3", 1, "identity"]]
    assert network(images(), {"normal": block, "reduction": block}).shape == (6, 10)
    normal = [("normal", (c, s, s)) for c, s in ((4, 16), (8, 8), (16, 4)) for _ in range(2)]
    reductions = [("reduction", (8, 8, 8)), ("reduction", (16, 4, 4))]
    assert shapes == [*normal[:2], reductions[0], *normal[2:4], reductions[1], *normal[4:]]


def test_a_file_becomes_part_of_the_config(composed: Compose, tmp_path: Path) -> None:
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps(ARCHITECTURE))
    options = ("data=digits", "model=cell", "norm=bn", "model.args.cells=1", "model.args.filters=4")
    config = composed(*options, f"model.args.architecture={file}")
    file.unlink()
    assert config.model.args["architecture"] == ARCHITECTURE
    network = build_model(config.model, config.norm, config.protocol, 10, config.seed)
    assert norm_layers(network) and network.eval()(images()).shape == (6, 10)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a.pop("reduction"), "no entry 'reduction'"),
        (lambda a: a["normal"][1].__setitem__(0, 3), "block 1 has the inputs 3 and 1"),
        (lambda a: a["normal"][0].__setitem__(1, "conv"), "unknown operation conv"),
        (lambda a: a["normal"][0].pop(), "not enough values"),
    ],
)
def test_a_malformed_architecture_is_refused(change: Callable[[Any], Any], reason: str) -> None:
    architecture = copy.deepcopy(ARCHITECTURE)
    change(architecture)
    with pytest.raises(ConfigError, match=r"expected the architecture\.json") as error:
        build_cells(10, BATCH, architecture=architecture)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "model.args.architecture is missing"),
        (("model.args.architecture=no.json",), "no.json: cannot be read (No such file"),
        (("model.args.architecture=README.md",), "README.md: cannot be read (not JSON)"),
        (("+model.args.depth=3", "model.args.architecture=FILE"), "keyword argument 'depth'"),
        (("model.args.cells=0", "model.args.architecture=FILE"), "model.args.cells=0: expected"),
    ],
)
def test_wrong_options_are_refused(
    composed: Compose, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps(ARCHITECTURE))

    def build() -> None:
        chosen = [text.replace("FILE", str(file)) for text in options]
        config = composed("data=digits", "model=cell", "norm=bn", *chosen)
        build_model(config.model, config.norm, config.protocol, 10, config.seed)

    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value)
