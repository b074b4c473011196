"""The command line of scripts/benchmark.py: a subcommand's interface, its table and its JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from sn_imagenet.config import ExperimentConfig, from_hydra
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.overrides import describe_error
from sn_imagenet.runs.provenance import provenance

VERSION = 5
"""Version of the JSON. Since version 3 a step's case has a title, and a setting instead of a batch;
since 4 it has no layout; since 5 ``machine`` is a result's provenance with ``load_average``."""

REFERENCE = "nn.BatchNorm2d"
T = TypeVar("T")
Report = tuple[dict[str, Any], str]
"""The contents of the JSON, apart from the machine, and the table for the terminal."""


@dataclass(frozen=True)
class Command:
    """One subcommand of scripts/benchmark.py.

    Attributes:
        help: one line for the command line.
        add_arguments: adds its own arguments to those that all have.
        measure: takes the arguments and the device. Raises UserError for a user's mistake.
        repeats: default of ``--repeats``.
        overrides: help on overrides of the config, if it takes any.
    """

    help: str
    add_arguments: Callable[[ArgumentParser], None]
    measure: Callable[[Namespace, torch.device], Report]
    repeats: int = 9
    overrides: str = ""


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


def run(description: str, configs: Path, arguments: list[str] | None = None) -> None:
    """Run a benchmark, print its table and write the requested files.

    Args:
        configs: the folder from which train.py composes its configuration.

    Raises:
        UserError: an argument is invalid.
    """
    args = _parse(description, configs, arguments)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    facts, table = commands()[args.benchmark].measure(args, device)
    print(table)
    if args.json:
        # Over 15 minutes; a load above the number of threads means a shared machine.
        machine = {**provenance(device), "load_average": os.getloadavg()[2], **_clocks(device)}
        content = {"version": VERSION, "benchmark": args.benchmark, "machine": machine}
        content["repeats"] = args.repeats
        if "overrides" in args:
            content["overrides"] = args.overrides
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**content, **facts}, indent=1) + "\n")


def _clocks(device: torch.device) -> dict[str, str]:
    """What nvidia-smi says of the GPUs right after the measurement; empty on the CPU."""
    query = "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw"
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", query, "--format=csv"]
    return {"clocks": subprocess.run(command, capture_output=True, text=True, timeout=60).stdout}


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
        raise ConfigError(describe_error(error)) from error


def parse_setting(text: str) -> tuple[int, int]:
    """Parse (replicas, samples per replica) from 32 or 16x2, for argparse."""
    replicas, _, samples = text.rpartition("x")
    return int(replicas or 1), int(samples)


ONLY: dict[str, Any] = {
    "nargs": "+",
    "default": [],
    "metavar": "NAME",
    "help": f"contenders to time beside {REFERENCE}, such as SN; default all",
}
"""The argument ``--only``."""


def choose(contenders: Mapping[str, T], only: Sequence[str]) -> dict[str, T]:
    """The contenders that ``only`` names, and nn.BatchNorm2d; all if it is empty.

    Raises:
        UserError: ``only`` has an unknown name.
    """
    if unknown := [name for name in only if name not in contenders]:
        names = ", ".join(map(repr, contenders))
        raise UserError(f"--only {unknown[0]!r}: expected some of {names}")
    chosen = only or contenders
    return {n: c for n, c in contenders.items() if n in chosen or n.startswith(REFERENCE)}


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of equal length in columns: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows
    )
