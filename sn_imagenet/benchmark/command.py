"""Command line of scripts/benchmark.py. To add a subcommand, write a module and list it here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sn_imagenet.benchmark import calibration, layers, loader, step, train
from sn_imagenet.benchmark.plot import plot
from sn_imagenet.benchmark.report import Command, write_json
from sn_imagenet.errors import UserError

COMMANDS: dict[str, Command] = {
    "norms": layers.COMMAND,
    "step": step.COMMAND,
    "train": train.COMMAND,
    "loader": loader.COMMAND,
    "calibration": calibration.COMMAND,
}


def run(description: str, configs: Path, arguments: list[str] | None = None) -> int:
    """Run a benchmark, print its table and write the requested files; returns the exit code.

    Args:
        configs: the folder from which train.py composes its configuration.
    """
    args = _parse(description, configs, arguments)
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
        if args.threads:
            torch.set_num_threads(args.threads)
        report = COMMANDS[args.benchmark].measure(args, device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.table)
    if args.json:
        write_json(args.benchmark, report.facts, device, args.json)
    if args.plot:
        plot(report.panels, report.reference, args.plot)
    return 0


def _parse(description: str, configs: Path, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(configs=configs)
    kinds = parser.add_subparsers(dest="benchmark", required=True)
    for name, command in COMMANDS.items():
        kind = kinds.add_parser(name, help=command.help)
        command.add_arguments(kind)
        kind.add_argument("--threads", type=int, help="CPU threads")
        kind.add_argument("--device", help="cpu or cuda; default cuda if available")
        kind.add_argument("--json", type=Path, help="write the report")
        kind.set_defaults(plot=None)
        if command.plots:
            kind.add_argument("--plot", type=Path, help="write a plot of the ratios")
    args, rest = parser.parse_known_args(arguments)
    # argparse accepts positional words only in one group, but Hydra overrides may be anywhere.
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (rest and "overrides" not in args):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if overrides:
        args.overrides = [*args.overrides, *overrides]
    return args
