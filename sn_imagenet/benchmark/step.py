"""The training step of a setting: the trainer's own, beside timm's with PyTorch's layers."""

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

from sn_imagenet.benchmark.compose import composed
from sn_imagenet.benchmark.contenders import REFERENCE
from sn_imagenet.benchmark.layers import setting
from sn_imagenet.benchmark.report import Command, Report, aligned
from sn_imagenet.benchmark.step_contenders import (
    PYTORCH,
    StepContender,
    StepData,
    StepKind,
    timm_step,
    trainer_step,
)
from sn_imagenet.benchmark.timing import StorageLog, alternate, captured
from sn_imagenet.distributed import set_precision
from sn_imagenet.errors import UserError
from sn_imagenet.models.mini import LAYERS as MINI_LAYERS

MODES = {
    "eager": None,
    "graph": None,
    "compile": "default",
    "reduce-overhead": "reduce-overhead",
}
"""How a step runs: as it is, whole in a CUDA graph, or under torch.compile in the mode of that
name, timm's network as a whole and the trainer's by its blocks."""


@dataclass
class StepCase:
    """Median seconds of a step, by contender.

    Attributes:
        kept: bytes that a forward pass keeps for backward, eager contenders only.
        peak_memory: bytes at a step's height, weights, gradients and momentum included, where the
            device counts them (CUDA).
    """

    kind: StepKind
    seconds: dict[str, float]
    kept: dict[str, int]
    peak_memory: dict[str, int]

    @property
    def images_per_second(self) -> dict[str, float]:
        return {name: self.kind.total / value for name, value in self.seconds.items()}

    def ratios(self) -> dict[str, float]:
        """Time over that of nn.BatchNorm2d with the whole batch as one, run eagerly if it was."""
        reference = self.seconds.get(REFERENCE) or next(
            s for name, s in self.seconds.items() if name.startswith(REFERENCE)
        )
        return {name: value / reference for name, value in self.seconds.items()}

    def as_dict(self) -> dict[str, Any]:
        others = {"ratios": self.ratios(), "images_per_second": self.images_per_second}
        return {"title": str(self.kind), **asdict(self), **others}


def check(kind: StepKind, modes: Sequence[str], device: torch.device) -> None:
    """Before the minutes that the others take; sets the kind's precision.

    Raises:
        UserError: an unknown network; a mode or a precision that the device has not.
    """
    if kind.network not in MINI_LAYERS and not timm.is_model(kind.network):
        raise UserError(
            f"--network {kind.network}: expected {', '.join(MINI_LAYERS)} or a timm model"
        )
    set_precision(kind.dtype, device)
    if "graph" in modes and device.type != "cuda":
        raise UserError(
            f"--modes graph: CUDA graphs need a CUDA device, this is {device.type}; leave it out"
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

    PyTorch's layers stand in timm's own network, over the whole batch. Ours are the trainer's own
    step with the configuration that train.py would compose, of a setting also SN in a pass each.
    In a CUDA graph, in which no loss can be read, our network takes the same plain step as timm's.

    Args:
        configs: the folder of choices from which train.py composes.
        repeats: rounds.
        methods: choices of ``norm``.
        overrides: further ones, as train.py takes them.

    Raises:
        UserError: a mode, a precision or a choice that there is not.
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
                case.kept[name] = _kept(contender)
            graph = mode == "graph"
            steps[name] = captured(contender.step, device) if graph else contender.step
            if cuda:
                case.peak_memory[name] = _peak(steps[name], device) - before
    case.seconds = alternate(steps, repeats, device)
    return case


def _contenders(
    data: StepData, configs: Path, mode: str, methods: Sequence[str], overrides: Sequence[str]
) -> dict[str, Callable[[], StepContender]]:
    """By name what makes it: made one after the other, so that memory can be told apart."""
    kind = data.kind
    suffix = "" if mode == "eager" else f", {mode}"
    makers: dict[str, Callable[[], StepContender]] = {
        f"{name}{suffix}": partial(timm_step, layer, data, MODES[mode])
        for name, layer in PYTORCH.items()
    }
    for method in methods:
        name = f"{method.upper()} {kind.setting}" if kind.replicas > 1 else method.upper()
        chosen = [f"norm={method}", *kind.overrides, *overrides]
        chosen.append(f"trainer.compile={MODES[mode] or 'false'}")
        config = composed(configs, chosen)
        makers[f"{name}{suffix}"] = partial(trainer_step, config, data, plain=mode == "graph")
        if method == "sn" and kind.replicas > 1 and mode == "eager":
            each = composed(configs, [*chosen, "trainer.replicas_per_pass=1"])
            makers[f"{name} in {kind.replicas} passes"] = partial(trainer_step, each, data)
    return makers


def _kept(contender: StepContender) -> int:
    network = contender.network
    with StorageLog() as log:
        y = contender.forward()
    return log.alive(y, *network.parameters(), *network.buffers())


def _peak(step: Callable[[], object], device: torch.device) -> int:
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


def steps_table(cases: Sequence[StepCase]) -> str:
    """A table per batch: seconds, images per second, the ratio to nn.BatchNorm2d's seconds, the
    megabytes that forward keeps, and those of the peak where the device counts them."""
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
        tables.append(aligned(rows))
    return "\n\n".join(tables)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="of our networks' configuration, as train.py takes them: model.fuse_relu=false",
    )
    parser.add_argument(
        "--batch",
        type=setting,
        nargs="+",
        default=[(1, 16)],
        metavar="N",
        help="images per step; 8x2 is the setting of 8 replicas of 2 samples each; default 16",
    )
    parser.add_argument("--norm", nargs="+", default=["bn", "gn", "sn"], help="as train.py's")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--network", default="resnet50", help="as train.py's model.name")
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["eager"],
        choices=MODES,
        help="graph: the whole step in a CUDA graph; compile, reduce-overhead: torch.compile's "
        "modes, minutes each",
    )
    parser.add_argument("--dtype", nargs="+", choices=("fp32", "tf32", "bf16"), default=["fp32"])
    parser.add_argument("--repeats", type=int, default=9, help="rounds; the median counts")


def _measure_all(args: Namespace, device: torch.device) -> Report:
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
        chosen = args.modes, args.norm, args.overrides
        cases.append(measure_steps(kind, args.configs, device, args.repeats, *chosen))
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
    return Report(facts, steps_table(cases), panels)


COMMAND = Command(
    "the training step of a setting, beside timm's network with nn.BatchNorm2d",
    _add_arguments,
    _measure_all,
)
