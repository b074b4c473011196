"""Steps with compiled blocks equal eager ones in every placement that supports compilation.

In float64, over three steps, with the graphs of Dynamo (backend ``eager``) and the forward and
backward graphs of AOTAutograd (``aot_eager``), because generating code would take minutes. The
tolerance, 1e-9 of a tensor's largest entry, is that of test_placement_equivalence.py.
"""

from __future__ import annotations

import copy
import math
import shutil
from typing import Any

import pytest
import torch
from placed_training import Outcome, batch, placed
from process_groups import run_on_ranks
from steppers import make_stepper
from test_placement_equivalence import Compose, assert_equal, config_of
from torch import nn

from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.config.running import COMPILE_MODES
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement
from sn_imagenet.models import build_model
from sn_imagenet.models.mini import build_mini
from sn_imagenet.norms import BatchNorm2d, SwitchNorm2d
from sn_imagenet.training.compiled import blocks

SETTING = (4, 2)
COMPILED = "trainer.compile=default"


@pytest.fixture(autouse=True)
def _reset_compiler() -> None:
    torch.compiler.reset()


def compiled(rank: int, world_size: int, values: dict[str, Any], backend: Any) -> Outcome:
    with torch.compiler.set_stance("default", force_backend=backend):
        return placed(rank, world_size, from_dict(values))


def eager_and_config(
    composed: Compose, norm: str, per_pass: int | None
) -> tuple[Outcome, dict[str, Any]]:
    """The outcome of the eager run, and the config of the compiled one."""
    eager = placed(0, 1, from_dict(config_of(composed, SETTING, norm, per_pass)))
    return eager, config_of(composed, SETTING, norm, per_pass, COMPILED)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "per_pass"), [("bn", 2), ("brn", None)])
def test_traced_blocks_train_like_eager_blocks(
    composed: Compose, norm: str, per_pass: int | None
) -> None:
    eager, values = eager_and_config(composed, norm, per_pass)
    assert_equal(compiled(0, 1, values, "eager"), eager, norm)


@pytest.mark.slow
def test_two_compiled_processes_train_like_one_eager_process(
    composed: Compose, tmp_path_factory: pytest.TempPathFactory
) -> None:
    eager, values = eager_and_config(composed, "sn", None)
    folder = tmp_path_factory.mktemp("compiled") / "world"
    for outcome in run_on_ranks(2, compiled, folder, 2, values, "aot_eager"):
        assert_equal(outcome, eager, "sn on two ranks")


def steps_of(
    config: ExperimentConfig, network: nn.Module, device: torch.device
) -> dict[str, torch.Tensor]:
    """The weights and statistics of a copy of ``network`` after four steps on ``device``."""
    network = copy.deepcopy(network).to(device)
    setting = config.batch.gpus, config.batch.samples_per_gpu
    placement = Placement(*setting, replicas_per_pass=config.trainer.replicas_per_pass)
    stepper = make_stepper(network, config, placement, device, rate=lambda step: 0.01)
    for step in range(4):
        images, labels = batch(step, config.batch.total)
        outcome = stepper.forward_backward(ImageBatch(images.float(), labels), step)
        assert math.isfinite(outcome.loss)
        stepper.optimizer_step(step)
    return network.state_dict()


def assert_near(values: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Within 1e-3 of a tensor's largest entry, for fp32."""
    for name, value in expected.items():
        largest = float(value.abs().max())
        assert float((values[name] - value).abs().max()) <= 1e-3 * largest, name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the generated code")
def test_generated_code_trains_like_eager(composed: Compose) -> None:
    """On the CPU, reduce-overhead records no CUDA graphs but must still be correct."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 1), SwitchNorm2d(4), nn.ReLU(), SwitchNorm2d(4))
    network = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    device = torch.device("cpu")
    eager = from_dict(config_of(composed, SETTING, "sn"))
    graphed = from_dict(config_of(composed, SETTING, "sn", None, "trainer.compile=reduce-overhead"))
    assert_near(steps_of(graphed, network, device), steps_of(eager, network, device))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("per_pass", [None, 2])
@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_generated_code_trains_like_eager_on_cuda(
    composed: Compose, mode: str, per_pass: int | None
) -> None:
    """With two passes per step, gradients are added to those of the first graph."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    eager = from_dict(config_of(composed, SETTING, "sn", per_pass))
    graphed = from_dict(config_of(composed, SETTING, "sn", per_pass, f"trainer.compile={mode}"))
    network = build_model(eager.model, eager.norm, eager.protocol, 10, eager.seed)
    network = network.to(memory_format=torch.channels_last)
    device = torch.device("cuda", 0)
    assert_near(steps_of(graphed, network, device), steps_of(eager, network, device))


def test_blocks_are_the_innermost_modules_with_several_norm_layers() -> None:
    network = build_mini("resnet14_mini", 10, SwitchNorm2d)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert blocks(network) == [stage[0] for stage in stages]
    assert blocks(nn.Sequential(BatchNorm2d(2), BatchNorm2d(2))) == []
