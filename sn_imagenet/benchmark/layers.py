"""One normalization layer, forward and backward, on ResNet-50's shapes."""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn

from sn_imagenet.benchmark.command import (
    REFERENCE,
    Report,
    add_only,
    align_columns,
    choose,
    parse_setting,
)
from sn_imagenet.benchmark.timing import StorageLog, capture_graph, median_seconds
from sn_imagenet.errors import UserError
from sn_imagenet.norms.control import set_replicas
from sn_imagenet.norms.kernels import select_backend
from sn_imagenet.norms.mixture import BatchNorm2d, GroupNorm2d, InstanceNorm2d, LayerNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.norms.switch_norm import SwitchNorm2d

SHAPES = (
    (64, 112, 112),
    (64, 56, 56),
    (128, 56, 56),
    (256, 56, 56),
    (128, 28, 28),
    (256, 28, 28),
    (512, 28, 28),
    (256, 14, 14),
    (512, 14, 14),
    (1024, 14, 14),
    (512, 7, 7),
    (2048, 7, 7),
)
"""The 12 distinct (C, H, W) of ResNet-50's 53 normalization layers at 224 pixels."""

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COPY = "copy"


@dataclass(frozen=True)
class ActivationKind:
    """All properties of an activation but its shape; a geometric mean is over one kind.

    The batch has ``replicas`` sets of statistics over ``samples`` samples each.
    """

    samples: int
    layout: str
    dtype: str
    replicas: int = 1

    def __str__(self) -> str:
        batch = f"{self.replicas}x{self.samples}" if self.replicas > 1 else str(self.samples)
        return f"N={batch} {self.layout} {self.dtype}"

    @property
    def total(self) -> int:
        """N, the samples in the batch."""
        return self.replicas * self.samples


def layer_case(
    kind: ActivationKind,
    shape: tuple[int, int, int],
    backend: str,
    seconds: dict[str, float],
    kept: dict[str, float],
) -> dict[str, Any]:
    """The JSON of one activation: median ``seconds`` of forward + backward by contender, and what
    follows from them. ``kept`` counts activations kept for backward beside the output: 1 is x
    itself. ``backend`` is that of our layers.

    ``ratios`` are relative to nn.BatchNorm2d. ``copy_bandwidth_share`` is the bandwidth of the
    bytes that must move, as a share of the copy's: a layer must read 6 and write 2 activations, the
    copy (x.clone()) reads and writes one.
    """
    moved = 2 * kind.total * math.prod(shape) * DTYPES[kind.dtype].itemsize
    shares = {n: (1 if n == COPY else 4) * seconds[COPY] / s for n, s in seconds.items()}
    return {
        "title": str(kind),
        "kind": asdict(kind),
        "shape": shape,
        "backend": backend,
        "seconds": seconds,
        "kept": kept,
        "ratios": {name: each / seconds[REFERENCE] for name, each in seconds.items()},
        "copy_bytes_per_second": moved / seconds[COPY],
        "copy_bandwidth_share": shares,
    }


class Fig7(nn.Module):
    """Fig. 7 of the paper as printed: nine passes over x in forward, and many kept copies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        w, v = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean: Tensor = torch.zeros((), device=x.device)
        var: Tensor = torch.zeros((), device=x.device)
        for k, dims in enumerate(((2, 3), (1, 2, 3), (0, 2, 3))):
            member_var, member_mean = torch.var_mean(x, dims, correction=0, keepdim=True)
            mean, var = mean + w[k] * member_mean, var + v[k] * member_var
        return ((x - mean) / torch.sqrt(var + 1e-5) * self.gamma + self.beta).to(x.dtype)


def layer_contenders(x: Tensor, replicas: int = 1, relu: bool = False) -> dict[str, nn.Module]:
    """Layers by name for an activation [N, C, H, W]; ours use the backend that they choose.
    ``relu``: with a ReLU, which is part of ours and a module after the others.

    Our BN and SN have ``replicas`` sets of statistics; PyTorch's layers and the paper's have one.
    """
    channels = x.shape[1]
    native = SwitchNorm2d(channels)
    native.backend = "native"
    layers: dict[str, nn.Module] = {
        REFERENCE: nn.BatchNorm2d(channels),
        "nn.GroupNorm(32)": nn.GroupNorm(32, channels).to(x.dtype),  # CUDA requires its input's
        "Fig. 7": Fig7(channels),
        "SN": SwitchNorm2d(channels),
        "SN (native)": native,
        "BN": BatchNorm2d(channels),
        "GN": GroupNorm2d(channels),
        "LN": LayerNorm2d(channels),
        "IN": InstanceNorm2d(channels),
    }
    for name, layer in layers.items():
        set_replicas(layer.to(x.device), replicas)
        if relu and isinstance(layer, MomentNorm2d):
            layer.relu = True
        elif relu:
            layers[name] = nn.Sequential(layer, nn.ReLU(inplace=True))
    return layers


def measure_layer(
    kind: ActivationKind,
    shape: tuple[int, int, int],
    device: torch.device,
    repeats: int,
    graph: bool = False,
    only: Sequence[str] = (),
    relu: bool = False,
) -> dict[str, Any]:
    """Time every contender on one random activation [kind.total, *shape] and its gradient.

    Every call allocates the output and the gradients of x and of all parameters. ``graph``: run
    each call as a CUDA graph, which excludes the host's time. ``only``: names of contenders to time
    beside nn.BatchNorm2d; empty for all. ``relu``: with a ReLU after each layer.

    Raises:
        UserError: ``only`` has an unknown name.
    """
    torch.manual_seed(0)
    memory_format = LAYOUTS[kind.layout]

    def activation() -> Tensor:
        values = torch.randn(kind.total, *shape, device=device).to(DTYPES[kind.dtype])
        return values.contiguous(memory_format=memory_format)

    x, grad = activation().requires_grad_(), activation()
    kept: dict[str, float] = {}
    calls: dict[str, Callable[[], object]] = {COPY: x.detach().clone}
    for name, layer in choose(layer_contenders(x, kind.replicas, relu), only).items():
        inputs = [x, *layer.parameters()]
        calls[name] = partial(_forward_backward, layer, x, inputs, grad)
        with StorageLog() as log:
            y = layer(x)
        kept[name] = 1 + log.live_bytes(x, y, *layer.buffers()) / x.untyped_storage().nbytes()
        del y
    if graph:
        calls = {name: capture_graph(call, device) for name, call in calls.items()}
    seconds = median_seconds(calls, repeats, device)
    return layer_case(kind, shape, select_backend(x).name, seconds, kept)


def _forward_backward(layer: nn.Module, x: Tensor, inputs: Sequence[Tensor], grad: Tensor) -> None:
    torch.autograd.grad(layer(x), inputs, grad)


def geometric_means(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the shapes, by contender: geometric mean and maximum of the ratio to
    nn.BatchNorm2d, and the geometric mean of the share of the copy's bandwidth."""
    means = {}
    for name in cases[0]["seconds"]:
        ratios = [case["ratios"][name] for case in cases]
        shares = [case["copy_bandwidth_share"][name] for case in cases]
        means[name] = {"geometric_mean": geometric_mean(ratios), "max": max(ratios)}
        means[name]["copy_bandwidth_share"] = geometric_mean(shares)
    return means


def layers_table(cases: Sequence[dict[str, Any]]) -> str:
    """A table of one kind of activation, with times relative to nn.BatchNorm2d: a row per shape,
    then means, shares of the copy's bandwidth and kept memory."""
    means, first = geometric_means(cases), cases[0]
    kept = {name: f"{count:.2f}" for name, count in first["kept"].items()}
    shares = {n: f"{100 * m['copy_bandwidth_share']:.0f} %" for n, m in means.items()}
    names = [name for name in means if name != REFERENCE]
    rows = [[f"{first['title']}, {first['backend']}", f"{REFERENCE} ms", *names]]
    for case in cases:
        size = "x".join(map(str, (ActivationKind(**case["kind"]).total, *case["shape"])))
        ratios = (f"{case['ratios'][name]:.2f}" for name in names)
        rows.append([size, f"{case['seconds'][REFERENCE] * 1e3:.2f}", *ratios])
    return align_columns(
        [
            *rows,
            ["geometric mean", "", *(f"{means[n]['geometric_mean']:.2f}" for n in names)],
            ["largest", "", *(f"{means[n]['max']:.2f}" for n in names)],
            ["copy's bandwidth", *(shares[n] for n in (REFERENCE, *names))],
            ["kept, activations", *(kept.get(n, "") for n in (REFERENCE, *names))],
        ]
    )


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--samples",
        type=parse_setting,
        nargs="+",
        default=[(1, 32), (1, 2), (16, 2)],
        metavar="N",
        help="batch sizes; 16x2 is a batch of 16 replicas of 2 samples; default 32 2 16x2",
    )
    parser.add_argument("--every", type=int, default=1, help="take every k-th of the 12 shapes")
    parser.add_argument(
        "--graph",
        action="store_true",
        help="run each call as a CUDA graph: device time without the host's",
    )
    add_only(parser)
    parser.add_argument("--relu", action="store_true", help="with a ReLU after each layer")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16"])


def measure(args: Namespace, device: torch.device) -> Report:
    if args.graph and device.type != "cuda":
        raise UserError(f"--graph needs a CUDA device, not {device.type}; leave it out")
    groups: dict[str, list[dict[str, Any]]] = {}
    for (replicas, samples), dtype, layout in product(args.samples, args.dtype, args.layout):
        kind = ActivationKind(samples, layout, dtype, replicas)
        print(kind, file=sys.stderr)
        options = args.repeats, args.graph, args.only, args.relu
        shapes = SHAPES[:: args.every]
        groups[str(kind)] = [measure_layer(kind, shape, device, *options) for shape in shapes]
    facts = {
        "reference": REFERENCE,
        "graph": args.graph,
        "only": args.only,
        "relu": args.relu,
        "geometric_means": {title: geometric_means(cases) for title, cases in groups.items()},
        "cases": [case for cases in groups.values() for case in cases],
    }
    return facts, "\n\n".join(map(layers_table, groups.values()))
