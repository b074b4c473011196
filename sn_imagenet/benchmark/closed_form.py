"""A mixture's closed form against autograd on ``combine``, over the same kernels."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch._functorch.config
from torch import nn

from sn_imagenet.benchmark.compose import compose_config
from sn_imagenet.benchmark.layers import SHAPES, ActivationKind, parse_setting
from sn_imagenet.benchmark.report import Command, BenchmarkReport, align_columns
from sn_imagenet.benchmark.step_contenders import StepData, StepKind, trainer_step
from sn_imagenet.benchmark.timing import CLOCKS, Clock, add_timing_arguments, time_interleaved
from sn_imagenet.errors import UserError
from sn_imagenet.norms import norm_layers, set_replicas
from sn_imagenet.norms.closed_form import closed_form_for
from sn_imagenet.norms.kernels import select_backend
from sn_imagenet.norms.methods import METHODS
from sn_imagenet.norms.mixture import MixtureNorm2d
from sn_imagenet.norms.moment_norm import MomentNorm2d
from sn_imagenet.training.compiled import raise_recompile_limits

CLOSED_FORM, AUTOGRAD, COMPILED = "closed form", "autograd", "compiled"

MIXTURES = [name for name, method in METHODS.items() if method.combine is MixtureNorm2d.combine]
"""The methods that have a closed form."""


@dataclass
class ClosedFormCase:
    """Median seconds of a layer's forward + backward, or of a whole step, by way."""

    title: str
    method: str
    seconds: dict[str, float]

    def ratios(self) -> dict[str, float]:
        """Time over the closed form's."""
        return {way: value / self.seconds[CLOSED_FORM] for way, value in self.seconds.items()}

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratios": self.ratios()}


def combine_by(way: str, network: nn.Module) -> None:
    """Have every normalization layer of ``network`` pool its tables by ``way``.

    ``autograd`` is what a method of one's own gets: MomentNorm2d, which knows of no closed form.
    ``compiled`` is that with :meth:`MomentNorm2d.coefficients` and its derivative, which are all
    that lies between the passes, under torch.compile.
    """
    if way == CLOSED_FORM:
        return
    if way == COMPILED:
        raise_recompile_limits()
        # The op asks for the derivative with retain_graph, which donated buffers refuse.
        torch._functorch.config.donated_buffer = False
    for layer in norm_layers(network).values():
        own: dict[str, Callable[..., Any]] = {
            "_normalize": MethodType(MomentNorm2d._normalize, layer)
        }
        if way == COMPILED:
            own["coefficients"] = torch.compile(layer.coefficients, fullgraph=True, dynamic=False)
        vars(layer).update(own)


def compare_layer(
    kind: ActivationKind,
    shape: tuple[int, int, int],
    method: str,
    device: torch.device,
    repeats: int,
    ways: Sequence[str],
    clock: Clock,
) -> ClosedFormCase:
    """One layer's forward + backward on a random activation [kind.total, *shape].

    Raises:
        UserError: the passes that the device gets have no closed form beside them.
    """
    torch.manual_seed(0)
    x = torch.randn(kind.total, *shape, device=device, requires_grad=True)
    grad = torch.randn_like(x)
    kernels = select_backend(x)
    if closed_form_for(kernels) is None:
        raise UserError(
            f"the {kernels.name} kernels have no closed form to compare with: install a C++ "
            "compiler for the CPU, or Triton for CUDA"
        )
    calls: dict[str, Callable[[], object]] = {}
    for way in ways:
        layer = METHODS[method](shape[0]).to(device)
        set_replicas(layer, kind.replicas)
        combine_by(way, layer)
        calls[way] = _gradients(layer, x, grad)
    title = f"layer {'x'.join(map(str, shape))}, {kind}"
    return ClosedFormCase(title, method, time_interleaved(calls, repeats, device, clock=clock))


def _gradients(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], object]:
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), inputs, grad)


def compare_step(
    kind: StepKind,
    method: str,
    configs: Path,
    device: torch.device,
    repeats: int,
    ways: Sequence[str],
    clock: Clock,
) -> ClosedFormCase:
    """The trainer's own step, :class:`~sn_imagenet.training.Stepper`, on one batch of noise."""
    data = StepData(kind, device)
    config = compose_config(configs, [f"norm={method}", *kind.overrides])
    steps: dict[str, Callable[[], object]] = {}
    for way in ways:
        contender = trainer_step(config, data)
        combine_by(way, contender.network)
        steps[way] = contender.step
    return ClosedFormCase(f"step {kind}", method, time_interleaved(steps, repeats, device, clock=clock))


def closed_form_table(cases: Sequence[ClosedFormCase]) -> str:
    """Milliseconds of the closed form, and the other ways' time over it."""
    ways = [way for way in cases[0].seconds if way != CLOSED_FORM]
    rows = [["", "norm", f"{CLOSED_FORM} ms", *ways]]
    for case in cases:
        ratios = case.ratios()
        milliseconds = f"{case.seconds[CLOSED_FORM] * 1e3:.2f}"
        rows.append([case.title, case.method, milliseconds, *(f"{ratios[w]:.2f}" for w in ways)])
    return align_columns(rows)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--layers",
        type=parse_setting,
        nargs="*",
        default=[(1, 32), (16, 2)],
        metavar="N",
        help="batches of a layer alone; 16x2 is 16 replicas of 2 samples each; default 32 16x2",
    )
    parser.add_argument("--every", type=int, default=3, help="every k-th of the 12 shapes")
    parser.add_argument(
        "--mini",
        type=parse_setting,
        nargs="*",
        default=[(8, 1), (8, 2), (8, 8)],
        metavar="N",
        help="batches of resnet50_mini's step at 16 px; default 8x1 8x2 8x8",
    )
    parser.add_argument(
        "--resnet50",
        type=parse_setting,
        nargs="*",
        default=[(8, 2)],
        metavar="N",
        help="batches of ResNet-50's step at 64 px; default 8x2",
    )
    parser.add_argument("--norm", nargs="+", choices=MIXTURES, default=["sn", "bn"])
    parser.add_argument("--compile", action="store_true", help="torch.compile too (minutes)")
    add_timing_arguments(parser, 9, "the process's time on the CPU, where others share the machine")


def _measure_all(args: Namespace, device: torch.device) -> BenchmarkReport:
    if args.clock == "cpu" and device.type != "cpu":
        raise UserError(f"--clock cpu: {device.type} works apart from the CPU; use --clock wall")
    if not (args.layers or args.mini or args.resnet50):
        raise UserError("--layers, --mini and --resnet50 are all empty: name a batch for one")
    ways = [CLOSED_FORM, AUTOGRAD, *([COMPILED] if args.compile else [])]
    chosen = device, args.repeats, ways, CLOCKS[args.clock]
    steps = [StepKind(r, n, 16, network="resnet50_mini", classes=10) for r, n in args.mini]
    steps += [StepKind(r, n, 64) for r, n in args.resnet50]
    cases = []
    for method in args.norm:
        for replicas, samples in args.layers:
            for shape in SHAPES[args.every - 1 :: args.every]:
                kind = ActivationKind(samples, "contiguous", "fp32", replicas)
                print(f"{method} {kind} {shape}", file=sys.stderr)
                cases.append(compare_layer(kind, shape, method, *chosen))
        for step in steps:
            print(f"{method} {step}", file=sys.stderr)
            cases.append(compare_step(step, method, args.configs, *chosen))
    facts = {
        "repeats": args.repeats,
        "reference": CLOSED_FORM,
        "clock": args.clock,
        "cases": [case.as_dict() for case in cases],
    }
    return BenchmarkReport(facts, closed_form_table(cases))


COMMAND = Command(
    "the mixtures' closed form, beside autograd on their pool",
    _add_arguments,
    _measure_all,
    plots=False,
)
