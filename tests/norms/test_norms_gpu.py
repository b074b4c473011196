"""Tests that need a CUDA device: ``pytest -m gpu``. test_norms_triton.py compares the Triton
kernels with the float64 formula."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from norm_reference import fig7, randomize
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from sn_imagenet.benchmark.command import REFERENCE
from sn_imagenet.benchmark.layers import ActivationKind, measure_layer
from sn_imagenet.benchmark.step import StepKind, measure_steps
from sn_imagenet.benchmark.timing import capture_graph
from sn_imagenet.norms import BatchNorm2d, GroupNorm2d, InstanceNorm2d, MomentNorm2d, SwitchNorm2d
from sn_imagenet.norms.kernels import BACKENDS, select_backend, triton_launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
LEARNING_RATE = 0.05
METHODS = [BatchNorm2d, GroupNorm2d, SwitchNorm2d]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# Relative to the largest value. Sums are fp32; then one rounding to the activation's dtype follows.
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def _exact_convolutions() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def network(layer: Callable[..., nn.Module]) -> nn.Module:
    shortcut = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), layer(64))
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        layer(32),
        nn.ReLU(inplace=True),
        Bottleneck(32, 16, downsample=shortcut, norm_layer=layer),
        Bottleneck(64, 16, norm_layer=layer),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).to(CUDA)
    return net.train()


def batch(samples: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 3, 24, 24, device=CUDA), torch.arange(samples, device=CUDA) % 5


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)


def assert_near(actual: nn.Module, expected: nn.Module, tolerance: float) -> None:
    theirs = expected.state_dict()
    for name, value in actual.state_dict().items():
        # Biases start at 0 and their gradients nearly cancel, so the scale is at least one step.
        scale = max(float(theirs[name].double().abs().max()), LEARNING_RATE)
        distance = float((value.double() - theirs[name].double()).abs().max())
        assert distance <= tolerance * scale, f"{name}: {distance} of {scale}"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(4, 64, 112, 112), (8, 256, 14, 14), (2, 2048, 7, 7)], ids=str)
def test_layers_of_resnet_50_equal_float64(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x = (torch.randn(shape, device=CUDA) + 2).to(dtype).contiguous(memory_format=layout)
    layer = SwitchNorm2d(shape[1]).to(CUDA)
    randomize(layer)
    assert select_backend(x).name == "triton"
    x = x.requires_grad_()
    x64 = x.detach().double().requires_grad_()
    exact = [p.detach().double().requires_grad_() for p in layer.parameters()]
    y, expected = layer(x), fig7(x64, *exact)
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
    direction = torch.randn_like(y)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], direction)
    expected_grads = torch.autograd.grad(expected, [x64, *exact], direction.double())
    for ours, theirs in zip((y, *grads), (expected, *expected_grads), strict=True):
        # Gradients of parameters are sums of many terms, which may nearly cancel.
        terms = x.numel() / theirs.numel()
        scale = max(float(theirs.detach().abs().max()), terms**0.5)
        assert float((ours.double() - theirs).abs().max()) <= 4 * ROUNDING[dtype] * scale


@pytest.mark.parametrize(
    ("mode", "passes"), [("default", 1), ("reduce-overhead", 1), ("reduce-overhead", 8)]
)
@pytest.mark.parametrize("layer", METHODS)
def test_compiled_training_equals_eager(layer: type[MomentNorm2d], mode: str, passes: int) -> None:
    """Also if the gradients of several passes are added up."""
    eager = network(layer)
    compiled = copy.deepcopy(eager)
    called = torch.compile(compiled, fullgraph=True, mode=mode)
    optimizers = sgd(compiled), sgd(eager)
    for _ in range(5):
        images, labels = (part.chunk(passes) for part in batch(8 * passes))
        for net, optimizer in zip((called, eager), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for some, answers in zip(images, labels, strict=True):
                torch.compiler.cudagraph_mark_step_begin()
                (F.cross_entropy(net(some), answers) / passes).backward()
            optimizer.step()
    assert_near(compiled, eager, 1e-3)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", METHODS)
def test_amp_is_near_fp32(layer: type[MomentNorm2d], half: torch.dtype, compiled: bool) -> None:
    """In its gradients and running statistics. fp16 uses the gradient scaler."""
    single = network(layer)
    mixed = copy.deepcopy(single)
    called = torch.compile(mixed, fullgraph=True) if compiled else mixed
    scaler = torch.amp.GradScaler("cuda", enabled=half == torch.float16, init_scale=1024.0)
    images, labels = batch(64)
    F.cross_entropy(single(images), labels).backward()
    with torch.autocast("cuda", half):
        logits = called(images)
        loss = F.cross_entropy(logits, labels)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer := sgd(mixed))
    assert logits.dtype == half and optimizer.param_groups
    # All gradients together, because some of SN's gradients nearly cancel.
    ours, theirs = (torch.cat([p.grad.flatten() for p in n.parameters()]) for n in (mixed, single))
    assert ours.isfinite().all()
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.1
    for name, buffer in mixed.named_buffers():
        assert buffer.dtype in (torch.float32, torch.int64), name
    assert_near(mixed, single, 0.05)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_stored_launch_equals_tritons_own(layout: torch.memory_format) -> None:
    x = torch.randn(8, 64, 28, 28, device=CUDA).contiguous(memory_format=layout).requires_grad_()
    layer = SwitchNorm2d(64).to(CUDA)
    grad = torch.randn_like(x)

    def results() -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)]

    results()  # times the tiles
    triton_launch._COMPILED.clear()
    own, count = results(), len(triton_launch._COMPILED)
    stored = results()
    assert len(triton_launch._COMPILED) == count >= 8
    assert all(map(torch.equal, stored, own))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_more_elements_than_an_int32_counts(layout: torch.memory_format) -> None:
    if torch.cuda.get_device_properties(CUDA).total_memory < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    x = torch.empty(33, 256, 512, 512, device=CUDA, dtype=torch.bfloat16, memory_format=layout)
    x.normal_()
    assert x.numel() > 2**31
    layer = InstanceNorm2d(256).to(CUDA)
    with torch.no_grad():
        y, last = layer(x), layer(x[-1:].clone(memory_format=layout))
    torch.testing.assert_close(y[-1:], last, rtol=1e-2, atol=1e-2)
    tables = torch.zeros(3, 33, 256, device=CUDA)
    sums, _ = BACKENDS["triton"].gradient_sums(y, x, tables[0], tables, False, None)
    expected = y[-1].float().sum((1, 2))
    torch.testing.assert_close(sums[0, -1], expected, rtol=1e-3, atol=1.0)


def test_the_layer_benchmark_runs_every_contender() -> None:
    """For every kind of activation. Our layers keep x and no other tensor of its size."""
    for dtype in ("fp32", "bf16"):
        for layout in ("contiguous", "channels_last"):
            case = measure_layer(ActivationKind(2, layout, dtype, 4), (256, 28, 28), CUDA, 1)
            assert REFERENCE in case["seconds"]
            assert case["backend"] == "triton" and case["kept"]["SN"] < 1.05


def test_a_captured_call_keeps_its_inputs_alive() -> None:
    read, out = torch.full((1 << 20,), 3.0, device=CUDA), torch.zeros(1 << 20, device=CUDA)
    replay = capture_graph(partial(torch.add, read, 1, out=out), CUDA)
    del read
    torch.cuda.empty_cache()
    fillers = [torch.full((1 << 20,), 7.0, device=CUDA) for _ in range(8)]
    out.zero_()
    replay()
    assert bool((out == 4).all()) and len(fillers) == 8


def test_the_step_benchmark_counts_memory() -> None:
    kind = StepKind(8, 1, 64, "bf16", network="resnet18")
    case = measure_steps(kind, CUDA, 1)
    assert case["peak_memory"]["SN (8,1)"] > case["kept"]["SN (8,1)"] > 0
