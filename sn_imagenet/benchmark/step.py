"""Times the trainer's training step of a setting against timm's network with PyTorch's layers."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

from sn_imagenet.benchmark.command import (
    REFERENCE,
    BenchmarkReport,
    Command,
    align_columns,
    compose_config,
    parse_setting,
)
from sn_imagenet.benchmark.step_contenders import (
    PYTORCH_LAYERS,
    StepContender,
    StepData,
    StepKind,
    timm_step,
    trainer_step,
)
from sn_imagenet.benchmark.timing import StorageLog, capture_graph, time_interleaved
from sn_imagenet.distributed import set_precision
from sn_imagenet.errors import UserError
from sn_imagenet.models.mini import LAYERS as MINI_LAYERS

MODES = {
    "eager": None,
    "graph": None,
    "compile": "default",
    "reduce-overhead": "reduce-overhead",
}
"""How a step runs: eagerly, whole in a CUDA graph, or under torch.compile in the named mode, which
compiles timm's network as a whole and the trainer's by blocks."""


@dataclass
class StepCase:
    """Median seconds of a step, by contender.

    Attributes:
        kept: bytes that a forward pass keeps for backward, for eager contenders only.
        peak_memory: peak bytes of a step, with weights, gradients and momentum; CUDA only.
    """

    kind: StepKind
    seconds: dict[str, float]
    kept: dict[str, int]
    peak_memory: dict[str, int]

    @property
    def images_per_second(self) -> dict[str, float]:
        return {name: self.kind.total / value for name, value in self.seconds.items()}

    def ratios(self) -> dict[str, float]:
        """Time relative to nn.BatchNorm2d over the whole batch, run eagerly if that was timed."""
        reference = self.seconds.get(REFERENCE) or next(
            s for name, s in self.seconds.items() if name.startswith(REFERENCE)
        )
        return {name: value / reference for name, value in self.seconds.items()}

    def as_dict(self) -> dict[str, Any]:
        others = {"ratios": self.ratios(), "images_per_second": self.images_per_second}
        return {"title": str(self.kind), **asdict(self), **others}


def check(kind: StepKind, modes: Sequence[str], device: torch.device) -> None:
    """Check a kind before anything slow starts, and set its precision.

    Raises:
        UserError: the network is unknown, or the device lacks a mode or the precision.
    """
    if kind.network not in MINI_LAYERS and not timm.is_model(kind.network):
        raise UserError(
            f"--network {kind.network}: expected {', '.join(MINI_LAYERS)} or a timm model"
        )
    set_precision(kind.dtype, device)
    if "graph" in modes and device.type != "cuda":
        raise UserError(
            f"--modes graph: CUDA graphs need a CUDA device, not {device.type}; leave it out"
        )


def measure_steps(
    kind: StepKind,
    configs: Path,
    device: torch.device,
    repeats: int,
    modes: Sequence[str] = ("eager",),
    methods: Sequence[str] = ("bn", "gn", "sn"),
    overrides: Sequence[str] = (),
) -> StepCase:
    """Time one kind of step on random images under each method and mode.

    PyTorch's layers run in timm's network, over the whole batch. Ours run in the trainer's step as
    train.py would configure it; SN with several replicas also with one replica per pass. In a CUDA
    graph, which cannot read a loss, our network takes the same plain step as timm's.

    Args:
        configs: the folder from which train.py composes its configuration.
        repeats: rounds.
        methods: values of ``norm``.
        overrides: further overrides, as for train.py.

    Raises:
        UserError: a mode, a precision or a choice does not exist.
    """
    check(kind, modes, device)
    data = StepData(kind, device)
    case = StepCase(kind, {}, {}, {})
    steps: dict[str, Callable[[], object]] = {}
    cuda = device.type == "cuda"
    for mode in modes:
        for name, make in _contenders(data, configs, mode, methods, overrides).items():
            before = torch.cuda.memory_allocated(device) if cuda else 0
            contender = make()
            if mode == "eager":
                case.kept[name] = _kept_bytes(contender)
            graph = mode == "graph"
            steps[name] = capture_graph(contender.step, device) if graph else contender.step
            if cuda:
                case.peak_memory[name] = _peak_memory(steps[name], device) - before
    case.seconds = time_interleaved(steps, repeats, device)
    return case


def _contenders(
    data: StepData, configs: Path, mode: str, methods: Sequence[str], overrides: Sequence[str]
) -> dict[str, Callable[[], StepContender]]:
    """Functions that make the contenders, one after the other to measure the memory of each."""
    kind = data.kind
    suffix = "" if mode == "eager" else f", {mode}"
    makers: dict[str, Callable[[], StepContender]] = {
        f"{name}{suffix}": partial(timm_step, layer, data, MODES[mode])
        for name, layer in PYTORCH_LAYERS.items()
    }
    for method in methods:
        name = f"{method.upper()} {kind.setting}" if kind.replicas > 1 else method.upper()
        chosen = [f"norm={method}", *kind.overrides, *overrides]
        chosen.append(f"trainer.compile={MODES[mode] or 'false'}")
        config = compose_config(configs, chosen)
        makers[f"{name}{suffix}"] = partial(trainer_step, config, data, plain=mode == "graph")
        if method == "sn" and kind.replicas > 1 and mode == "eager":
            separate = compose_config(configs, [*chosen, "trainer.replicas_per_pass=1"])
            makers[f"{name} in {kind.replicas} passes"] = partial(trainer_step, separate, data)
    return makers


def _kept_bytes(contender: StepContender) -> int:
    network = contender.network
    with StorageLog() as log:
        y = contender.forward()
    return log.live_bytes(y, *network.parameters(), *network.buffers())


def _peak_memory(step: Callable[[], object], device: torch.device) -> int:
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


def steps_table(cases: Sequence[StepCase]) -> str:
    """A table per batch: milliseconds, images/s, the ratio to nn.BatchNorm2d's time, megabytes
    kept by forward, and on CUDA the peak in megabytes."""
    tables = []
    for case in cases:
        rows = [[str(case.kind), "ms", "images/s", "ratio", "kept MB", "peak MB"]]
        for name, seconds in case.seconds.items():
            rows.append(
                [
                    name,
                    f"{seconds * 1e3:.1f}",
                    f"{case.images_per_second[name]:.1f}",
                    f"{case.ratios()[name]:.2f}",
                    *(_megabytes(table.get(name)) for table in (case.kept, case.peak_memory)),
                ]
            )
        tables.append(align_columns(rows))
    return "\n\n".join(tables)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        type=parse_setting,
        nargs="+",
        default=[(1, 16)],
        metavar="N",
        help="images per step; 8x2 is the setting of 8 replicas of 2 samples; default 16",
    )
    parser.add_argument("--norm", nargs="+", default=["bn", "gn", "sn"], help="as in train.py")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--network", default="resnet50", help="train.py's model.name")
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["eager"],
        choices=MODES,
        help="graph: the whole step as a CUDA graph; compile, reduce-overhead: modes of "
        "torch.compile, minutes each",
    )
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "tf32", "bf16"), default=["fp32"])


def _measure(args: Namespace, device: torch.device) -> BenchmarkReport:
    kinds = [
        StepKind(replicas, samples, args.image_size, dtype, args.network, args.classes)
        for dtype in args.dtype
        for replicas, samples in args.batch
    ]
    for kind in kinds:
        check(kind, args.modes, device)
    cases = []
    for kind in kinds:
        print(kind, file=sys.stderr)
        options = args.modes, args.norm, args.overrides
        cases.append(measure_steps(kind, args.configs, device, args.repeats, *options))
    facts = {
        "repeats": args.repeats,
        "reference": REFERENCE,
        "overrides": args.overrides,
        "cases": [case.as_dict() for case in cases],
    }
    panels = {
        str(case.kind): {n: ratio for n, ratio in case.ratios().items() if n != REFERENCE}
        for case in cases
    }
    return BenchmarkReport(facts, steps_table(cases), panels)


COMMAND = Command(
    "the training step of a setting against timm's network with nn.BatchNorm2d",
    _add_arguments,
    _measure,
    overrides="of our networks' configuration, as for train.py: model.fuse_relu=false",
    plots=True,
)
