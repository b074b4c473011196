"""The command line of scripts/benchmark.py: the benchmarks, their tables and their JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from sn_imagenet.config import CONFIGS, ExperimentConfig, from_hydra
from sn_imagenet.errors import ConfigError, UserError
from sn_imagenet.overrides import describe_error
from sn_imagenet.runs.provenance import provenance

VERSION = 5
"""Version of the JSON. Since version 3 a step's case has a title, and a setting instead of a batch;
since 4 it has no layout; since 5 ``machine`` is a result's provenance with ``load_average``."""

REFERENCE = "nn.BatchNorm2d"
_MODULES = {"norms": "layers"} | {name: name for name in ("step", "train", "loader", "detection")}
T = TypeVar("T")
Report = tuple[dict[str, Any], str]
"""The contents of the JSON, apart from the machine, and the table for the terminal."""


def benchmarks() -> dict[str, ModuleType]:
    """The benchmarks by name: modules with ``add_arguments(parser)`` for their own arguments and
    ``measure(args, device) -> Report``. One that takes overrides of the config explains them in
    ``OVERRIDES``.
    """
    # Imported here, because they import this module.
    return {name: import_module(f"sn_imagenet.benchmark.{m}") for name, m in _MODULES.items()}


def run(description: str, arguments: list[str] | None = None) -> None:
    """Run a benchmark, print its table and write the requested files.

    Raises:
        UserError: an argument is invalid.
    """
    args = _parse(description, arguments)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    facts, table = benchmarks()[args.benchmark].measure(args, device)
    print(table)
    if args.json:
        # Over 15 minutes; a load above the number of threads means a shared machine.
        machine = {**provenance(device), "load_average": os.getloadavg()[2], **_clocks(device)}
        content = {"version": VERSION, "benchmark": args.benchmark, "machine": machine}
        content |= {"repeats": args.repeats, "overrides": args.overrides, **facts}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n")


def _clocks(device: torch.device) -> dict[str, str]:
    """What nvidia-smi says of the GPUs right after the measurement; empty on the CPU."""
    query = "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw"
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", query, "--format=csv"]
    return {"clocks": subprocess.run(command, capture_output=True, text=True, timeout=60).stdout}


def _parse(description: str, arguments: list[str] | None) -> Namespace:
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in benchmarks().items():
        overrides = getattr(module, "OVERRIDES", "")
        epilog = f"Overrides KEY=VALUE {overrides}" if overrides else None
        kind = kinds.add_parser(name, help=module.__doc__, epilog=epilog)
        help = "rounds, whose medians are reported; default %(default)s"
        kind.add_argument("--repeats", type=int, default=9, help=help)
        kind.add_argument("--threads", type=int, help="CPU threads")
        kind.add_argument("--device", help="cpu or cuda; default cuda if available")
        kind.add_argument("--json", type=Path, help="write the report")
        module.add_arguments(kind)
    # argparse accepts positional words only in one group, but overrides may be anywhere.
    args, overrides = parser.parse_known_args(arguments)
    known = hasattr(benchmarks()[args.benchmark], "OVERRIDES")
    if unknown := [w for w in overrides if not known or w.startswith("-") or "=" not in w]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.overrides = overrides
    return args


def compose_config(overrides: Sequence[str]) -> ExperimentConfig:
    """The configuration that ``train.py OVERRIDES`` would run.

    Raises:
        ConfigError: a choice does not exist, or a value is invalid.
    """
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return from_hydra(compose("config", list(overrides)))
    except HydraException as error:
        raise ConfigError(describe_error(error)) from error


def parse_setting(text: str) -> tuple[int, int]:
    """Parse (replicas, samples per replica) from 32 or 16x2, for argparse."""
    replicas, _, samples = text.rpartition("x")
    return int(replicas or 1), int(samples)


def add_only(parser: ArgumentParser) -> None:
    """Add the argument ``--only``, for :func:`choose`."""
    help = f"contenders to time beside {REFERENCE}, such as SN; default all"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=help)


def choose(contenders: Mapping[str, T], only: Sequence[str]) -> dict[str, T]:
    """The contenders that ``only`` names, and nn.BatchNorm2d; all if it is empty.

    Raises:
        UserError: ``only`` has an unknown name.
    """
    if unknown := [name for name in only if name not in contenders]:
        names = ", ".join(map(repr, contenders))
        raise UserError(f"--only {unknown[0]!r}: expected some of {names}")
    chosen = only or contenders
    return {n: c for n, c in contenders.items() if n in chosen or n == REFERENCE}


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of equal length in columns: the first to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows
    )
