"""The command line of scripts/benchmark.py: a subcommand's interface, its table, JSON and plot."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from sn_imagenet.config import ExperimentConfig, from_hydra
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.runs.provenance import provenance

VERSION = 5
"""Version of the JSON. Since version 3 a step's case has a title, and a setting instead of a batch;
since 4 it has no layout; since 5 ``machine`` is a result's provenance with ``load_average``."""

REFERENCE = "nn.BatchNorm2d"
_COLUMNS = 4  # panels of a plot side by side
_OURS = ("SN", "exact", "fast")


@dataclass(frozen=True)
class BenchmarkReport:
    """Measurements of a subcommand.

    Attributes:
        facts: contents of the JSON, apart from the machine.
        table: for the terminal.
        panels: for the plot, by title: time relative to the reference by contender; empty if there
            is nothing to compare.
        reference: name of the reference.
    """

    facts: dict[str, Any]
    table: str
    panels: dict[str, dict[str, float]] = field(default_factory=dict)
    reference: str = REFERENCE


@dataclass(frozen=True)
class Command:
    """One subcommand of scripts/benchmark.py.

    Attributes:
        help: one line for the command line.
        add_arguments: adds its own arguments to those that all have.
        measure: takes the arguments and the device. Raises UserError for a user's mistake.
        repeats: default of ``--repeats``.
        overrides: help on overrides of the config, if it takes any.
        plots: whether its reports have panels, for ``--plot``.
    """

    help: str
    add_arguments: Callable[[ArgumentParser], None]
    measure: Callable[[Namespace, torch.device], BenchmarkReport]
    repeats: int = 9
    overrides: str = ""
    plots: bool = False


def commands() -> dict[str, Command]:
    """The subcommands by name. To add one, write a module and list it here."""
    from sn_imagenet.benchmark import (  # they import this module
        detection,
        layers,
        loader,
        step,
        train,
    )

    return {
        "norms": layers.COMMAND,
        "step": step.COMMAND,
        "train": train.COMMAND,
        "loader": loader.COMMAND,
        "detection": detection.COMMAND,
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
        report = commands()[args.benchmark].measure(args, device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.table)
    if args.json:
        # Over 15 minutes; a load above the number of threads means a shared machine.
        machine = {**provenance(device), "load_average": os.getloadavg()[2]}
        content = {"version": VERSION, "benchmark": args.benchmark, "machine": machine}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**content, **report.facts}, indent=1) + "\n")
    if args.plot:
        plot(report.panels, report.reference, args.plot)
    return 0


def _parse(description: str, configs: Path, arguments: list[str] | None) -> Namespace:
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.set_defaults(configs=configs)
    kinds = parser.add_subparsers(dest="benchmark", required=True)
    for name, command in commands().items():
        kind = kinds.add_parser(name, help=command.help)
        command.add_arguments(kind)
        if command.overrides:
            kind.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=command.overrides)
        help = f"rounds, whose medians are reported; default {command.repeats}"
        kind.add_argument("--repeats", type=int, default=command.repeats, help=help)
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


def compose_config(configs: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """The configuration that ``train.py OVERRIDES`` would run, from the folder ``configs``.

    Raises:
        ConfigError: a choice does not exist, or a value is invalid.
    """
    try:
        with initialize_config_dir(str(configs), version_base="1.3"):
            return from_hydra(compose("config", list(overrides)))
    except HydraException as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error


def parse_setting(text: str) -> tuple[int, int]:
    """Parse (replicas, samples per replica) from 32 or 16x2, for argparse."""
    replicas, _, samples = text.rpartition("x")
    return int(replicas or 1), int(samples)


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of equal length in columns: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows
    )


def plot(panels: Mapping[str, Mapping[str, float]], reference: str, path: Path) -> None:
    """Plot time relative to the reference by contender, on a log scale, one panel per title."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    bars = max(len(values) for values in panels.values())
    figure = Figure(figsize=(1.8 + 3.1 * columns, rows * (0.9 + 0.24 * bars)))
    flat = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for axes in flat[len(panels) :]:
        axes.set_visible(False)
    for index, (axes, (title, values)) in enumerate(zip(flat, panels.items(), strict=False)):
        names = list(values)
        colors = ["#c44" if name.startswith(_OURS) else "#68a" for name in names]
        axes.barh(range(len(names)), list(values.values()), color=colors)
        # On a GPU contenders differ between dtypes, so only equal neighbors share the labels.
        repeated = index % columns and names == list(list(panels.values())[index - 1])
        axes.set_yticks(range(len(names)), [""] * len(names) if repeated else names, fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())  # within one decade it would label all
        axes.tick_params(axis="x", labelsize=8, labelbottom=index >= len(panels) - columns)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)
        if index >= len(panels) - columns:
            axes.set_xlabel(f"time / {reference}", fontsize=8)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line at 1
        for y, value in enumerate(values.values()):
            axes.text(value, y, f" {value:.2f}", va="center", fontsize=7, bbox=white)
        axes.margins(x=0.25)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
