"""Runs the project's commands as a user types them, and reads the files that they write."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from process_groups import run_programs

ROOT = Path(__file__).parents[2]
SMALL = ("data=digits", "model=resnet14_mini")
MODEL_DIR = Path("digits/resnet14_mini")  # below runs_dir, of a run with SMALL


@dataclass(frozen=True)
class Completed:
    """Exit code and output of a finished command."""

    code: int
    out: str
    err: str

    @property
    def output(self) -> str:
        return self.out + self.err


def command(script: str, *arguments: object, processes: int | None = None) -> list[str]:
    """The command line ``python SCRIPT ...``, or of torchrun with ``processes``."""
    # Each has its own free port, since tests run in parallel.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = [sys.executable, *(torchrun if processes else [])]
    return [*launcher, script, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """Environment variables with one thread per process, for bitwise equal results."""
    inherited = {key: value for key, value in os.environ.items() if key != "IMAGENET_ROOT"}
    return {**inherited, "OMP_NUM_THREADS": "1", **more}


def run(
    script: str,
    *arguments: object,
    processes: int | None = None,
    cwd: Path = ROOT,
    **variables: str,
) -> Completed:
    """Run a command until it ends."""
    line = command(script, *arguments, processes=processes)
    process = subprocess.run(
        line,
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    return Completed(process.returncode, process.stdout, process.stderr)


def train(*arguments: object, **options: Any) -> Completed:
    return run("train.py", *arguments, **options)


def run_forked(script: str, *arguments: object, folder: Path) -> Completed:
    """Run a script in a process forked from the server of :mod:`process_groups`, which has imported
    torch: no test waits for that. ``folder`` holds the output.
    """
    (process,) = run_programs(1, _main, folder, script, list(map(str, arguments)))
    assert process.code is not None
    return Completed(process.code, process.out, process.err)


def train_forked(*arguments: object, folder: Path) -> Completed:
    return run_forked("train.py", *arguments, folder=folder)


def evaluate_forked(*arguments: object, folder: Path) -> Completed:
    return run_forked("evaluate.py", *arguments, folder=folder)


def _main(script: str, arguments: list[str]) -> None:
    os.environ.pop("IMAGENET_ROOT", None)
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def train_killed(*arguments: object, folder: Path, step: int, last: Path, epoch: int) -> Completed:
    """Run ``train.py`` and kill it before its update number ``step``, once ``last``, the checkpoint
    that another thread writes, has ``epoch``.
    """
    line = list(map(str, arguments))
    (process,) = run_programs(1, _main_killed, folder, line, step, last, epoch)
    assert process.code is not None
    return Completed(process.code, process.out, process.err)


def _main_killed(arguments: list[str], step: int, last: Path, epoch: int) -> None:
    update, remaining = torch.optim.SGD.step, iter(range(1, step))

    def update_or_kill(*args: Any, **kwargs: Any) -> Any:
        if next(remaining, None) is None:
            while torch.load(last)["epoch"] < epoch:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*args, **kwargs)

    torch.optim.SGD.step = update_or_kill  # type: ignore[method-assign]
    _main("train.py", arguments)


def evaluate(*arguments: object, **options: Any) -> Completed:
    return run("evaluate.py", *arguments, **options)


def check_ok(done: Completed) -> Completed:
    assert done.code == 0, done.output
    return done


def check_error(done: Completed, *parts: str, code: int = 2) -> None:
    """Check that a command ended with one error that has all ``parts``, and no traceback."""
    assert done.code == code, done.output
    assert done.err.count("error: ") == 1, done.output
    assert 'train.py", line' not in done.err, done.output
    assert 'evaluate.py", line' not in done.err, done.output
    for part in parts:
        assert part in done.err, f"{part!r} is not in: {done.output}"


def read_result(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return content


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def photographs(name: str, links: Path) -> Path | None:
    """Real photographs beside the project, if available: a folder ``links`` that leads to their
    folders alone, so that no index there is read."""
    folder = ROOT.parent / "shared" / "data" / name
    if not folder.is_dir():
        return None
    links.mkdir()
    for part in filter(Path.is_dir, folder.iterdir()):
        (links / part.name).symlink_to(part)
    return links
