"""trainer.compile in a whole run: what is compiled, recorded, refused and saved.

Dynamo's graphs run uncompiled here; tests/distributed/test_placement_compiled.py compares numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import result_of
from torch import Tensor, nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.distributed import Placement
from sn_imagenet.errors import ConfigError
from sn_imagenet.norms import BatchNorm2d, SyncBatchNorm2d
from sn_imagenet.runs import checkpoint
from sn_imagenet.training import compiled, train
from sn_imagenet.training.compiled import CompiledBlocks, require_compilable

Compose = Callable[..., ExperimentConfig]
RUN = ("data=digits", "model=resnet14_mini", "batch=8x2", "norm=sn", "data.workers=0")
SHORT = ("trainer.max_steps=2", "calibration.samples=16")


class Block(nn.Module):
    """Two normalization layers of one class."""

    def __init__(self, layer: type[BatchNorm2d] = BatchNorm2d) -> None:
        super().__init__()
        self.one, self.two = layer(3), layer(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x))
        return y


@pytest.fixture(autouse=True)
def _reset_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.slow
def test_only_training_is_compiled(composed: Compose, tmp_path: Path) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def run(name: str, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
        with torch.compiler.set_stance("default", force_backend=backend):
            trained = train(composed(*RUN, *SHORT, f"run_dir={tmp_path / name}", *overrides))
        return result_of(trained), checkpoint.load(tmp_path / name / "last.pt")

    result, state = run("compiled", "trainer.compile=default")
    assert len(graphs) == 4, "validation, calibration and evaluation must not compile"
    (record,) = result["training"]["compiled"]
    assert record["mode"] == "default" and record["seconds"] > 0
    assert result["config"]["trainer"]["compile"] == "default"
    assert len(result["evaluations"]) == 2

    eager, expected = run("eager")
    assert len(graphs) == 4 and eager["training"]["compiled"] == [None]
    assert eager["departures"] == result["departures"]
    assert state["model"].keys() == expected["model"].keys()
    torch.testing.assert_close(state["model"], expected["model"], rtol=1e-4, atol=1e-5)

    # It is not part of the experiment: the run resumes without it.
    (tmp_path / "compiled" / "result.json").unlink()
    resumed, _ = run("compiled")
    assert len(graphs) == 4 and resumed["training"]["compiled"] == [record, None]


def test_blocks_are_compiled_only_inside_the_context() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Block(), Block(), nn.Flatten())
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    x = torch.randn(4, 3, 2, 2)
    blocks = CompiledBlocks(network, "default")
    with torch.compiler.set_stance("default", force_backend=backend):
        expected = network(x)
        assert not graphs and "forward" not in vars(network[1])
        with blocks.active():
            compiled_output = network(x)
    torch.testing.assert_close(compiled_output, expected)
    assert len(graphs) == 1, "equal blocks must be compiled once"
    assert "forward" not in vars(network[1])


def test_a_compiler_failure_is_a_config_error() -> None:
    class Uncompilable(Block):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().forward(x)

    network = nn.Sequential(Uncompilable())
    with (
        pytest.raises(ConfigError, match=r"trainer\.compile=default: torch\.compile cannot"),
        CompiledBlocks(network, "default").active(),
    ):
        network(torch.randn(4, 3, 2, 2))
    assert "forward" not in vars(network[0])


def test_unsupported_networks_placements_and_options_are_refused(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = Placement(8, 2)
    require_compilable("default", single, nn.Sequential(Block(SyncBatchNorm2d)))
    with pytest.raises(ConfigError, match="no blocks of several normalization layers"):
        require_compilable("default", single, nn.Sequential(BatchNorm2d(3), BatchNorm2d(3)))
    with pytest.raises(ConfigError, match="no more processes than 1"):
        require_compilable("default", Placement(1, 8, 2), nn.Sequential(Block()))
    monkeypatch.setattr(compiled, "world_size", lambda: 2)
    require_compilable("default", Placement(8, 2, 2), nn.Sequential(Block()))
    with pytest.raises(ConfigError, match="no more processes than 1"):
        require_compilable("default", Placement(8, 2, 2), nn.Sequential(Block(SyncBatchNorm2d)))
    with pytest.raises(ConfigError, match=r"by timing them.*use one of the two"):
        composed("trainer.compile=default", "trainer.deterministic=true")
