"""Runs the commands of the documentation, with little data and few steps.

The test's data replace the user's, and overrides that shorten a run are appended. Commands that
download or submit to Slurm are only composed. A command that is unknown here is an error.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from doc_text import ROOT, split
from process_groups import run_programs
from torch.distributed.run import get_args_parser

SMALL = ("trainer.max_steps=1", "calibration.samples=16", "data.workers=0")
PIXELS = ("data.image_size=16", "data.resize_size=16")
BENCHMARKS = {
    "norms": "--samples 2 --every 12 --repeats 1 --layout contiguous --dtype fp32",
    "step": "--batch 2 --image-size 32 --repeats 1",
    "train": "trainer.log_every=5 --steps 10 --repeats 1 --threads 1",
    "loader": "--batch 2 --workers 0 --repeats 1",
}


class UnknownCommandError(AssertionError):
    """No test runs this command: add it to doc_runs.py or remove it from the page."""


@dataclass(frozen=True)
class Folders:
    """Folders for commands: ``cwd`` is the current one and may have ``runs``; ``imagenet`` has
    ImageNet's layout; ``run`` is a finished run; ``logs``, an empty folder, is for their output.
    """

    cwd: Path
    imagenet: Path
    run: Path
    logs: Path

    def fill(self, word: str) -> str:
        """Replace the user's paths in ``word`` with the test's."""
        word = word.replace("/data/imagenet", str(self.imagenet)).replace("RUN_DIR", str(self.run))
        word = word.replace("results/expected", str(ROOT / "results" / "expected"))
        return re.sub(r"\bDIR\b", str(self.imagenet / "val"), word)


def run_command(command: str, folders: Folders) -> str:
    """Run ``command``, check that it succeeded, and return its output."""
    variables, words = split(command)
    program, *arguments = map(folders.fill, words)
    if program not in RUNNERS:
        raise UnknownCommandError(command)
    return RUNNERS[program](arguments, variables, folders)


def is_slow(command: str) -> bool:
    """Whether a command trains, measures, or starts processes that import everything."""
    _, words = split(command)
    if words[:2] == ["make", "demo"] or words[0] in ("pytest", "tensorboard"):
        return True
    if "train.py" in words and "--cfg" not in words:
        return _trains_here(words)
    return bool({"--nproc_per_node", "scripts/benchmark.py", "evaluate.py"} & set(words))


def _trains_here(arguments: list[str]) -> bool:
    """Whether a sweep runs on this machine, with data that need no download."""
    slurm = "hydra/launcher=submitit_slurm" in arguments
    return not (slurm or _downloads(arguments) or "sweep.dry_run=true" in arguments)


def _downloads(arguments: list[str]) -> bool:
    return any(word in ("data=cifar10", "sweep=cifar10") for word in arguments)


def _python(arguments: list[str], variables: dict[str, str], folders: Folders) -> str:
    script, *rest = arguments
    if arguments == ["-m", "sn_imagenet.norms"]:
        return _run(1, "sn_imagenet/norms/__main__.py", [], variables, folders)
    if script.startswith("examples/"):  # tests/test_examples.py runs them
        assert (ROOT / script).is_file()
        return "run there"
    return _run(1, script, _words(script, rest), variables, folders)


def _torchrun(arguments: list[str], variables: dict[str, str], folders: Folders) -> str:
    parsed = get_args_parser().parse_args(arguments)
    words = _words(parsed.training_script, parsed.training_script_args)
    return _run(int(parsed.nproc_per_node), parsed.training_script, words, variables, folders)


def _words(script: str, arguments: list[str]) -> list[str]:
    """The arguments of a script as the test gives them."""
    if not (ROOT / script).is_file():
        raise UnknownCommandError(script)
    if script == "train.py":
        return _train(arguments)
    if script == "scripts/benchmark.py":
        return _benchmark(arguments)
    return ["runs", "runs"] if script == "scripts/compare_runs.py" else arguments


def _run(
    processes: int, script: str, arguments: list[str], variables: dict[str, str], folders: Folders
) -> str:
    folders.logs.mkdir(parents=True, exist_ok=True)
    known = {"IMAGENET_ROOT": str(folders.imagenet), "OMP_NUM_THREADS": "1", **variables}
    ranks = run_programs(
        processes, _main, folders.logs, script, arguments, known, str(folders.cwd), timeout=300
    )
    output = "\n".join(f"{rank.out}{rank.err}" for rank in ranks)
    assert [rank.code for rank in ranks] == [0] * processes, output
    return output


def _main(script: str, arguments: list[str], variables: dict[str, str], folder: str) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    if "PYTHONPATH" in variables:  # this interpreter has already started
        sys.path.insert(0, os.path.abspath(variables["PYTHONPATH"]))
    sys.argv = [str(ROOT / script), *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def _train(arguments: list[str]) -> list[str]:
    if "--cfg" in arguments:
        return arguments
    if "-m" in arguments:
        return _sweep(arguments)
    if _downloads(arguments):
        return [*arguments, "--cfg", "job"]
    return [*arguments, *_short(arguments)]


def _short(arguments: list[str]) -> list[str]:
    """Overrides that make a run short, for groups that the command does not choose itself."""
    given = {word.partition("=")[0] for word in arguments}
    model = () if given & {"model", "model.name"} else ("model=resnet14_mini",)
    batch = () if given & {"batch", "batch.gpus"} else ("batch=8x2",)
    digits = {"data=digits", "sweep=digits", "sweep=demo"} & set(arguments)
    return [*model, *batch, *SMALL, *(() if digits else PIXELS)]


def _sweep(arguments: list[str]) -> list[str]:
    """One run of the sweep, or only its plan if it would download or submit."""
    words = [word.replace("glob(*)", "8x2").partition(",")[0] for word in arguments]
    given = {word.partition("=")[0] for word in words}
    one = [word for word in ("norm=sn", "seed=0") if word.partition("=")[0] not in given]
    plan = () if _trains_here(arguments) else ("sweep.dry_run=true",)
    return [*words, *one, *_short(words), *plan]


def _benchmark(arguments: list[str]) -> list[str]:
    if arguments[0] not in BENCHMARKS:
        raise UnknownCommandError(f"benchmark.py {arguments[0]}")
    trains = arguments[0] == "train"
    small = [word for word in _short(arguments) if word not in SMALL] if trains else []
    return [*arguments, *small, *BENCHMARKS[arguments[0]].split()]


def _make(arguments: list[str], variables: dict[str, str], folders: Folders) -> str:
    """Print the target's commands; run those of the demo."""
    output = _execute(["make", "-n", *arguments], ROOT)
    if arguments == ["demo"]:
        python = ".venv/bin/python "
        pattern = re.compile(rf"{python}(train|scripts/)")
        lines = [line for line in output.splitlines() if pattern.match(line)]
        assert len(lines) == 5, output
        for number, line in enumerate(lines):
            logs = folders.logs / str(number)
            subfolder = Folders(folders.cwd, folders.imagenet, folders.run, logs)
            output += run_command("python " + line.removeprefix(python), subfolder)
    return output


def _pytest(arguments: list[str], variables: dict[str, str], folders: Folders) -> str:
    paths = [] if "tests/norms" in arguments else ["tests/norms"]
    extra = ["--collect-only", "-q", "-p", "no:cacheprovider", *paths]
    return _execute([sys.executable, "-m", "pytest", *arguments, *extra], ROOT)


def _tensorboard(arguments: list[str], variables: dict[str, str], folders: Folders) -> str:
    """Read the events once instead of serving them."""
    return _execute(
        [sys.executable, "-m", "tensorboard.main", "--inspect", *arguments], folders.cwd
    )


def _pip(arguments: list[str], variables: dict[str, str], folders: Folders) -> str:
    """Check the names of the extras; installing them would download."""
    action, option, target = arguments
    extras = re.fullmatch(r"\.\[([\w,]+)\]", target)
    assert (action, option) == ("install", "-e"), arguments
    assert extras, arguments
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    missing = set(extras[1].split(",")) - set(known["optional-dependencies"])
    assert not missing, missing
    return target


def _pre_commit(arguments: list[str], variables: dict[str, str], folders: Folders) -> str:
    """Check the hooks only; installing them writes into .git."""
    assert arguments == ["install"]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        command = hook["entry"].replace(".venv/bin", "$(BIN)").replace(" --force-exclude", "")
        assert f"\t{command}" in (ROOT / "Makefile").read_text()
    return "local"


def _source(arguments: list[str], variables: dict[str, str], folders: Folders) -> str:
    """Check that it is the environment of make setup."""
    (script,) = arguments
    assert f"BIN := {Path(script).parent}" in (ROOT / "Makefile").read_text()
    return script


def _execute(command: list[str], folder: Path) -> str:
    process = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


RUNNERS: dict[str, Callable[[list[str], dict[str, str], Folders], str]] = {
    "make": _make,
    "pip": _pip,
    "pre-commit": _pre_commit,
    "pytest": _pytest,
    "python": _python,
    "source": _source,
    "tensorboard": _tensorboard,
    "torchrun": _torchrun,
}
