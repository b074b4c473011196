"""Steps as CUDA graphs. On a CPU, a graph is replaced by the function that it would capture."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from process_groups import run_on_ranks
from steppers import make_stepper
from torch.utils._python_dispatch import TorchDispatchMode

from sn_imagenet.benchmark.timing import StorageLog
from sn_imagenet.config import ExperimentConfig, from_dict
from sn_imagenet.data.batches import ImageBatch
from sn_imagenet.distributed import Placement, autocast_for
from sn_imagenet.errors import ConfigError
from sn_imagenet.models import build_model
from sn_imagenet.norms import SparseSwitchNorm2d
from sn_imagenet.tasks import build_task
from sn_imagenet.tasks.classification import Classification
from sn_imagenet.training import Stepper, step_graph
from sn_imagenet.training import stepper as stepper_module

Compose = Callable[..., ExperimentConfig]
TINY = ("data=digits", "model=resnet14_mini", "batch=4x2")
WAITS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select"}


CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)


def batches(count: int, rank: int = 0, world_size: int = 1) -> Iterator[ImageBatch]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randn(8, 3, 16, 16, generator=generator)
        labels = torch.randint(10, (8,), generator=generator)
        yield ImageBatch(images[rank::world_size], labels[rank::world_size])


def stepper_of(
    config: ExperimentConfig, placement: Placement | None = None, device: str = "cpu", seed: int = 0
) -> Stepper:
    """Its learning rate drops at step 12."""
    network = build_model(config.model, config.norm, config.protocol, 10, seed)
    network = network.to(device).to(memory_format=torch.channels_last)
    rate = lambda step: 0.1 if step < 12 else 0.01  # noqa: E731
    return make_stepper(network, config, placement or Placement(4, 2), rate, device)


@pytest.fixture
def captures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was captured, in order; really captured if the test's device is CUDA."""
    captured: list[Any] = []
    real, given = step_graph.capture, getattr(request.node, "callspec", None)
    on_gpu = given is not None and given.params.get("device") == "cuda"

    def capture(run: Callable[[], object]) -> Callable[[], object]:
        captured.append(run)
        return real(run) if on_gpu else run

    monkeypatch.setattr(stepper_module, "require_graph", lambda *_: None)
    monkeypatch.setattr(step_graph, "capture", capture)
    return captured


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("norm", ["sn", "brn"])
def test_graphs_equal_eager_steps_bit_for_bit(
    norm: str, device: str, composed: Compose, captures: list[Any]
) -> None:
    """Losses, weights, running statistics and momentum; with a checkpoint between, and a drop of
    the rate, at both of which a step is captured again."""
    config = composed(*TINY, f"norm={norm}", "trainer.graph=true")
    eager = stepper_of(composed(*TINY, f"norm={norm}"), device=device)
    graph = stepper_of(config, device=device)
    losses: dict[Stepper, list[float]] = {}
    for step, batch in enumerate(batches(20)):
        if step == 6:
            assert len(captures) == 1
            resumed = stepper_of(config, device=device)
            resumed.load_state_dict(copy.deepcopy(graph.state_dict()))
            losses[resumed], graph = losses[graph], resumed
        for stepper in (eager, graph):
            stepper.step(batch, step, (0.0, 1.0))
            outcomes = list(stepper.outcomes(wait=step in (5, 19)))
            assert all(outcome.flags == (0, 1) for outcome in outcomes)
            losses.setdefault(stepper, []).extend(outcome.loss for outcome in outcomes)
    assert len(captures) == 3 and losses[graph] == losses[eager] and len(losses[graph]) == 20
    assert_same(graph.state_dict(), eager.state_dict())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_on_images_in_its_precision_is_the_same(precision: str, composed: Compose) -> None:
    """The first convolution would round them alike."""
    network = stepper_of(composed(*TINY)).network
    (images, labels), *_ = batches(1)
    task = build_task(composed(*TINY, f"trainer.precision={precision}"))
    half = task.image_dtype
    assert task.warm_up_batch(1).images.dtype == half
    outcomes = []
    for given in (images, images.to(half)):
        with autocast_for(precision, torch.device("cpu"))():
            loss = torch.nn.functional.cross_entropy(network(given), labels)
        outcomes.append((loss, *torch.autograd.grad(loss, list(network.parameters()))))
    assert half != torch.float32 and all(map(torch.equal, *outcomes))


def test_after_a_loss_that_is_not_finite_no_graph_updates(
    composed: Compose, captures: list[Any]
) -> None:
    stepper = stepper_of(composed(*TINY, "trainer.graph=true"))
    found = []
    for step, (images, labels) in enumerate(batches(9)):
        stepper.step(ImageBatch(images * math.nan if step == 5 else images, labels), step)
        found += [outcome.loss for outcome in stepper.outcomes(wait=False)]
        assert len(found) == step  # one step late
        if step == 4:
            optimizer = stepper.optimizations["optimizer"].optimizer
            weights = {name: p.detach().clone() for name, p in stepper.network.named_parameters()}
            momentum = copy.deepcopy(optimizer.state_dict())
    assert [math.isfinite(loss) for loss in found] == [True] * 5 + [False] + [True] * 2
    assert_same(dict(stepper.network.named_parameters()), weights)
    assert_same(optimizer.state_dict(), momentum)


def test_the_device_part_neither_waits_nor_keeps_memory(
    composed: Compose, captures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients aside, which the next step replaces: in a graph, at the same place."""

    names: set[str] = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the device part waits for the device")

    stepper = stepper_of(composed(*TINY, "trainer.graph=true"))
    for step, batch in enumerate(batches(step_graph.WARM_UP + 1)):
        stepper.step(batch, step)
    for name in ("synchronize", "current_stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    with StorageLog() as log, Names():
        captures[-1]()
    assert not names & WAITS and len(names) > 20
    parameters, graph = list(stepper.network.parameters()), stepper._graph
    assert graph is not None
    gradients = [p.grad for p in parameters if p.grad is not None]
    places = (*parameters, *stepper.network.buffers(), graph._totals, graph._broken, *graph._inputs)
    assert log.live_bytes(*gradients, *places) == 0


def _two_ranks(rank: int, values: dict[str, Any]) -> dict[str, Any]:
    stepper_module.require_graph = lambda *_: None  # type: ignore[assignment]
    step_graph.capture = lambda run: run  # type: ignore[assignment]
    stepper = stepper_of(from_dict(values), Placement(4, 2, 2, rank), seed=rank)
    for step, batch in enumerate(batches(6, rank, 2)):
        stepper.step(batch, step)
    return {"loss": [outcome.loss for outcome in stepper.outcomes()], **stepper.state_dict()}


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", [CUDA])
def test_one_rank_of_nccl_equals_none(device: str, composed: Compose, captures: list[Any]) -> None:
    """Under DistributedDataParallel, and with its all-reduce in a graph."""

    def train(*options: str) -> dict[str, Any]:
        stepper = stepper_of(composed(*TINY, "norm=sn", *options), device=device)
        for step, batch in enumerate(batches(6)):
            stepper.step(batch, step)
        return {"loss": [outcome.loss for outcome in stepper.outcomes()], **stepper.state_dict()}

    alone = train()
    dist.init_process_group(
        "nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0)
    )
    try:
        for options in ((), ("trainer.graph=true",)):
            assert_same(train(*options), alone)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("graph", [False, True])
def test_memory_does_not_grow(
    graph: bool, device: str, composed: Compose, captures: list[Any]
) -> None:
    stepper = stepper_of(composed(*TINY, f"trainer.graph={graph}"), device=device)
    used = []
    for step, batch in enumerate(batches(220)):
        stepper.step(batch, step)
        list(stepper.outcomes(wait=False))
        used.append(torch.cuda.memory_allocated())
    assert used[-1] <= used[20]


@pytest.mark.slow
def test_two_ranks_equal_distributed_data_parallel(composed: Compose, tmp_path: Path) -> None:
    """Both start from rank 0's weights."""
    eager, graph = (
        run_on_ranks(2, _two_ranks, tmp_path / kind, composed(*TINY, *options).to_dict())
        for kind, options in (("eager", ()), ("graph", ("trainer.graph=true",)))
    )
    assert_same(graph, eager)


class Drawing(Classification):
    uses_global_rng = True


@pytest.mark.parametrize(
    ("options", "device", "reason"),
    [
        ((), "cpu", "needs a CUDA device, not cpu"),
        (("trainer.precision=fp16",), "cuda", "trainer.precision=fp16"),
        (("protocol.dropout=0.5",), "cuda", "protocol.dropout"),
        (("trainer.replicas_per_pass=1",), "cuda", "4 forward passes; use trainer.replicas"),
        (("norm=ssn",), "cuda", "norm=ssn changes its layers"),
        ((f"task.target={__name__}.Drawing",), "cuda", "task=classification is seeded by the host"),
        (("task=stylization", "task.style=a", "task.features=b"), "cuda", "task=stylization"),
    ],
)
def test_what_a_graph_cannot_run_is_refused(
    options: tuple[str, ...], device: str, reason: str, composed: Compose
) -> None:
    config = composed(*TINY, *options)
    placement = Placement(4, 2, replicas_per_pass=config.trainer.replicas_per_pass)
    layers = [SparseSwitchNorm2d(4)] if config.norm.name == "ssn" else []
    run = build_task(config), config, placement, torch.device(device), layers
    with pytest.raises(ConfigError, match=reason):
        step_graph.require_graph(*run)
