"""Runs the project's commands as a user types them, and reads what they leave."""

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
CELL = Path("digits/resnet14_mini")  # below runs_dir, of a run with SMALL
TIMINGS = ("images_per_s", "data_wait_pct")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def command(script: str, *arguments: object, processes: int | None = None) -> list[str]:
    """``python SCRIPT ...``, or under torchrun with so many ``processes``."""
    # A free port each, since tests run side by side.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = [sys.executable, *(torchrun if processes else [])]
    return [*launcher, script, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """One thread for each process, so that results can be equal bit for bit."""
    ours = {key: value for key, value in os.environ.items() if key != "IMAGENET_ROOT"}
    return {**ours, "OMP_NUM_THREADS": "1", **more}


def run(
    script: str,
    *arguments: object,
    processes: int | None = None,
    cwd: Path = ROOT,
    kilobytes: int | None = None,
    **variables: str,
) -> Done:
    """Run a command to its end. ``kilobytes``: no file may become larger, as on a full disk."""
    line = command(script, *arguments, processes=processes)
    if kilobytes is not None:
        line = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", *line]
    ended = subprocess.run(
        line,
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    return Done(ended.returncode, ended.stdout, ended.stderr)


def train(*arguments: object, **options: Any) -> Done:
    return run("train.py", *arguments, **options)


def forked(script: str, *arguments: object, folder: Path) -> Done:
    """Run a script in a process forked from the server of :mod:`process_groups`, which has imported
    torch: no test waits for that. ``folder`` holds the output.
    """
    (ended,) = run_programs(1, _main, folder, script, list(map(str, arguments)))
    assert ended.code is not None
    return Done(ended.code, ended.out, ended.err)


def train_forked(*arguments: object, folder: Path) -> Done:
    return forked("train.py", *arguments, folder=folder)


def evaluate_forked(*arguments: object, folder: Path) -> Done:
    return forked("evaluate.py", *arguments, folder=folder)


def _main(script: str, arguments: list[str]) -> None:
    os.environ.pop("IMAGENET_ROOT", None)
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def train_killed(*arguments: object, folder: Path, step: int, last: Path, epoch: int) -> Done:
    """``train.py``, killed before its update number ``step``, with ``epoch`` complete in ``last``,
    its checkpoint, which another thread writes.
    """
    line = list(map(str, arguments))
    (ended,) = run_programs(1, _main_killed, folder, line, step, last, epoch)
    assert ended.code is not None
    return Done(ended.code, ended.out, ended.err)


def _main_killed(arguments: list[str], step: int, last: Path, epoch: int) -> None:
    update, done = torch.optim.SGD.step, iter(range(1, step))

    def update_or_die(*args: Any, **kwargs: Any) -> Any:
        if next(done, None) is None:
            while torch.load(last)["epoch"] < epoch:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*args, **kwargs)

    torch.optim.SGD.step = update_or_die  # type: ignore[method-assign]
    _main("train.py", arguments)


def evaluate(*arguments: object, **options: Any) -> Done:
    return run("evaluate.py", *arguments, **options)


def succeeded(done: Done) -> Done:
    assert done.code == 0, done.said
    return done


def refused(done: Done, *parts: str, code: int = 2) -> None:
    """The command ended with one clear error of ours that has all ``parts``; no traceback."""
    assert done.code == code, done.said
    assert done.err.count("error: ") == 1, done.said
    assert 'train.py", line' not in done.err, done.said
    assert 'evaluate.py", line' not in done.err, done.said
    for part in parts:
        assert part in done.err, f"{part!r} is not in: {done.said}"


def result(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return content


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def without_timings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key not in TIMINGS} for row in rows]


def photographs(name: str) -> Path | None:
    """Real photographs that lie beside the project, if they do."""
    folder = ROOT.parent / "shared" / "data" / name
    return folder if folder.is_dir() else None
