"""The command line of scripts/benchmark.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from sn_imagenet.benchmark import layers, report, step
from sn_imagenet.benchmark.plot import plot


def run(description: str, arguments: list[str] | None = None) -> int:
    """Measure, print the table, write what was asked for; 2 for what the user can mend."""
    args = _parse(description, arguments)
    try:
        device = _device(args.device)
        if args.threads:
            torch.set_num_threads(args.threads)
        result, table = (_norms if args.benchmark == "norms" else _steps)(args, device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    if args.json:
        report.write_json(result, args.json)
    if args.plot:
        plot(result, args.plot)
    return 0


def _device(name: str | None) -> torch.device:
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device")
    return device


def _norms(args: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], str]:
    cases = []
    for replicas, samples in args.samples:
        for dtype in args.dtype:
            for layout in args.layout:
                kind = layers.Kind(samples, layout, dtype, replicas)
                for shape in layers.SHAPES[:: args.every]:
                    print(f"{kind} {shape}", file=sys.stderr)
                    others = args.compile, args.residual
                    cases.append(layers.measure(kind, shape, device, args.repeats, *others))
    return report.layers_report(cases, args.repeats, device), report.layers_table(cases)


def _steps(args: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], str]:
    for mode in args.modes:
        step.check_mode(mode, device)  # before the minutes that the others take
    cases = []
    for dtype in args.dtype:
        for layout in args.layout:
            for batch in args.batch:
                kind = step.StepKind(
                    batch, args.image_size, layout, dtype, args.replicas, args.network
                )
                print(kind, file=sys.stderr)
                cases.append(step.measure_steps(kind, device, args.repeats, args.modes))
    return report.steps_report(cases, args.repeats, device), report.steps_table(cases)


def _batch(text: str) -> tuple[int, int]:
    """(replicas, samples of each) from 32 or 16x2."""
    replicas, _, samples = text.rpartition("x")
    return int(replicas or 1), int(samples)


def _parse(description: str, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="benchmark", required=True)
    norms = kinds.add_parser("norms", help="one layer, forward + backward, on ResNet-50's shapes")
    norms.add_argument(
        "--samples",
        type=_batch,
        nargs="+",
        default=[(1, 32), (1, 2), (16, 2)],
        metavar="N",
        help="batches; 16x2 is 16 replicas of 2 samples each in one batch; default 32 2 16x2",
    )
    norms.add_argument("--every", type=int, default=1, help="every k-th of the 12 shapes")
    norms.add_argument("--compile", action="store_true", help="torch.compile too (minutes)")
    norms.add_argument(
        "--residual", action="store_true", help="the end of a residual block too: add and ReLU"
    )
    steps = kinds.add_parser("step", help="ResNet-50's training step")
    steps.add_argument("--batch", type=int, nargs="+", default=[16], help="images per step")
    steps.add_argument("--replicas", type=int, default=8, help="sets of statistics; divides batch")
    steps.add_argument("--image-size", type=int, default=224)
    steps.add_argument("--network", default="resnet50", help="a timm name")
    steps.add_argument(
        "--modes",
        nargs="+",
        default=["eager"],
        choices=step.MODES,
        help="graph: the whole step in a CUDA graph; compile, reduce-overhead: torch.compile's "
        "modes, minutes each",
    )
    for kind, layouts, dtypes in (
        (norms, list(layers.LAYOUTS), ["fp32", "bf16"]),
        (steps, ["contiguous"], ["fp32"]),
    ):
        kind.add_argument("--layout", nargs="+", choices=layers.LAYOUTS, default=layouts)
        kind.add_argument("--dtype", nargs="+", choices=layers.DTYPES, default=dtypes)
        kind.add_argument("--repeats", type=int, default=9, help="rounds; the median counts")
        kind.add_argument("--threads", type=int, help="CPU threads")
        kind.add_argument("--device", help="cpu or cuda; the GPU where there is one")
        kind.add_argument("--json", type=Path, help="write the report")
        kind.add_argument("--plot", type=Path, help="write a plot of the ratios")
    return parser.parse_args(arguments)
