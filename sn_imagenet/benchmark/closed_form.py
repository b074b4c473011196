"""Times a mixture's closed form against autograd on ``combine``, with the same kernels."""

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
from sn_imagenet.benchmark.report import BenchmarkReport, Command, align_columns
from sn_imagenet.benchmark.step_contenders import StepData, StepKind, trainer_step
from sn_imagenet.benchmark.timing import CLOCKS, Clock, add_timing_arguments, time_interleaved
from sn_imagenet.errors import UserError
from sn_imagenet.norms import norm_layers, set_replicas
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
    """Median seconds of a layer's forward + backward, or of a whole step, by mode."""

    title: str
    method: str
    seconds: dict[str, float]

    def ratios(self) -> dict[str, float]:
        """Time relative to the closed form."""
        return {mode: value / self.seconds[CLOSED_FORM] for mode, value in self.seconds.items()}

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratios": self.ratios()}


def set_combine_mode(mode: str, network: nn.Module) -> None:
    """Make every normalization layer of ``network`` combine its statistics in the given mode.

    ``autograd`` is how a custom method runs: MomentNorm2d, which has no closed form. ``compiled``
    is the same with :meth:`MomentNorm2d.coefficients` and its derivative, all the work between the
    passes over x, under torch.compile.
    """
    if mode == CLOSED_FORM:
        return
    if mode == COMPILED:
        raise_recompile_limits()
        # The op differentiates with retain_graph, which donated buffers do not allow.
        torch._functorch.config.donated_buffer = False
    for layer in norm_layers(network).values():
        own: dict[str, Callable[..., Any]] = {
            "_normalize": MethodType(MomentNorm2d._normalize, layer)
        }
        if mode == COMPILED:
            own["coefficients"] = torch.compile(layer.coefficients, fullgraph=True, dynamic=False)
        vars(layer).update(own)


def compare_layer(
    kind: ActivationKind,
    shape: tuple[int, int, int],
    method: str,
    device: torch.device,
    repeats: int,
    modes: Sequence[str],
    clock: Clock,
) -> ClosedFormCase:
    """Time one layer's forward + backward on a random activation [kind.total, *shape].

    Raises:
        UserError: the device's kernels have no closed form.
    """
    torch.manual_seed(0)
    x = torch.randn(kind.total, *shape, device=device, requires_grad=True)
    grad = torch.randn_like(x)
    kernels = select_backend(x)
    if kernels.name == "native":
        raise UserError(
            f"the {kernels.name} kernels have no closed form to compare with: install a C++ "
            "compiler for the CPU, or Triton for CUDA"
        )
    calls: dict[str, Callable[[], object]] = {}
    for mode in modes:
        layer = METHODS[method](shape[0]).to(device)
        set_replicas(layer, kind.replicas)
        set_combine_mode(mode, layer)
        calls[mode] = _gradients(layer, x, grad)
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
    modes: Sequence[str],
    clock: Clock,
) -> ClosedFormCase:
    """Time the trainer's step, :class:`~sn_imagenet.training.Stepper`, on one batch of noise."""
    data = StepData(kind, device)
    config = compose_config(configs, [f"norm={method}", *kind.overrides])
    steps: dict[str, Callable[[], object]] = {}
    for mode in modes:
        contender = trainer_step(config, data)
        set_combine_mode(mode, contender.network)
        steps[mode] = contender.step
    return ClosedFormCase(
        f"step {kind}", method, time_interleaved(steps, repeats, device, clock=clock)
    )


def closed_form_table(cases: Sequence[ClosedFormCase]) -> str:
    """A table of the closed form's milliseconds and the other modes' time relative to it."""
    modes = [mode for mode in cases[0].seconds if mode != CLOSED_FORM]
    rows = [["", "norm", f"{CLOSED_FORM} ms", *modes]]
    for case in cases:
        ratios = case.ratios()
        milliseconds = f"{case.seconds[CLOSED_FORM] * 1e3:.2f}"
        rows.append([case.title, case.method, milliseconds, *(f"{ratios[m]:.2f}" for m in modes)])
    return align_columns(rows)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--layers",
        type=parse_setting,
        nargs="*",
        default=[(1, 32), (16, 2)],
        metavar="N",
        help="batches of a single layer; 16x2 is 16 replicas of 2 samples; default 32 16x2",
    )
    parser.add_argument("--every", type=int, default=3, help="take every k-th of the 12 shapes")
    parser.add_argument(
        "--mini",
        type=parse_setting,
        nargs="*",
        default=[(8, 1), (8, 2), (8, 8)],
        metavar="N",
        help="settings of resnet50_mini's step at 16 px; default 8x1 8x2 8x8",
    )
    parser.add_argument(
        "--resnet50",
        type=parse_setting,
        nargs="*",
        default=[(8, 2)],
        metavar="N",
        help="settings of ResNet-50's step at 64 px; default 8x2",
    )
    parser.add_argument("--norm", nargs="+", choices=MIXTURES, default=["sn", "bn"])
    parser.add_argument("--compile", action="store_true", help="add torch.compile (minutes)")
    add_timing_arguments(parser, 9, "CPU time of this process, for a shared machine")


def _measure_all(args: Namespace, device: torch.device) -> BenchmarkReport:
    if args.clock == "cpu" and device.type != "cpu":
        raise UserError(f"--clock cpu does not count {device.type} time; use --clock wall")
    if not (args.layers or args.mini or args.resnet50):
        raise UserError("--layers, --mini and --resnet50 are all empty: give a batch for one")
    modes = [CLOSED_FORM, AUTOGRAD, *([COMPILED] if args.compile else [])]
    options = device, args.repeats, modes, CLOCKS[args.clock]
    steps = [StepKind(r, n, 16, network="resnet50_mini", classes=10) for r, n in args.mini]
    steps += [StepKind(r, n, 64) for r, n in args.resnet50]
    cases = []
    for method in args.norm:
        for replicas, samples in args.layers:
            for shape in SHAPES[args.every - 1 :: args.every]:
                kind = ActivationKind(samples, "contiguous", "fp32", replicas)
                print(f"{method} {kind} {shape}", file=sys.stderr)
                cases.append(compare_layer(kind, shape, method, *options))
        for step in steps:
            print(f"{method} {step}", file=sys.stderr)
            cases.append(compare_step(step, method, args.configs, *options))
    facts = {
        "repeats": args.repeats,
        "reference": CLOSED_FORM,
        "clock": args.clock,
        "cases": [case.as_dict() for case in cases],
    }
    return BenchmarkReport(facts, closed_form_table(cases))


COMMAND = Command(
    "time of the mixtures' closed form against autograd on combine",
    _add_arguments,
    _measure_all,
    plots=False,
)
