"""The wheel works without this checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
from importlib.resources import files
from pathlib import Path

import sn_imagenet, sn_imagenet.norms, torch

package = Path(sn_imagenet.__file__).parent
assert package.is_relative_to(sys.prefix), package
assert (package / "py.typed").is_file() and (package / "norms/py.typed").is_file()
for name in ("kernels/operators.cpp", "kernels/combine.h", "kernels/kernels.h"):
    assert (package / "norms" / name).is_file(), name
layer = sn_imagenet.norms.SwitchNorm2d(4)
layer(torch.randn(2, 4, 3, 3)).sum().backward()
from sn_imagenet.norms.kernels import cpp
assert cpp.SOURCE.is_relative_to(package)
print("built" if cpp.supports(torch.zeros(1, 1, 1, 1)) else "no compiler")
"""
LAYER = """
import torch, sn_imagenet.norms as norms
network = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.ReLU())
norms.convert_norm(network, "sn")
network(torch.randn(2, 4, 3, 3)).sum().backward()
print(norms.__file__)
"""


def run(*command: object, cwd: Path) -> str:
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    line = list(map(str, command))
    done = subprocess.run(line, cwd=cwd, env=own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_installs_working_layers_in_an_empty_environment(tmp_path: Path) -> None:
    """Nothing is downloaded: a .pth file adds this environment's packages."""
    source = tmp_path / "source"
    source.mkdir()
    folders = ("sn_imagenet", "hydra_plugins", "configs")
    tracked = run("git", "ls-files", *folders, cwd=ROOT).splitlines()
    for name in (*tracked, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    options = ("--no-deps", "--no-build-isolation", "--quiet")
    run(*pip, "wheel", *options, "--wheel-dir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    run(*pip, f"--python={python}", "install", "--no-deps", "--quiet", wheel, cwd=tmp_path)
    lib = tmp_path / "env" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (lib / "this_environment.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    assert run(python, "-c", SCRIPT, cwd=tmp_path).strip() in ("built", "no compiler")
    programs = tmp_path / "env/bin"
    small = ("data=digits", "model=resnet14_mini", "norm=gn", "batch=2x2", "trainer.max_steps=2")
    sweep = ("-m", "hydra/launcher=local", "trainer.device=cpu", "sweep.slots=1")
    run(programs / "sn-train", *sweep, *small, "tracker=none", cwd=tmp_path)
    trained = tmp_path / "runs/digits/resnet14_mini/gn/2x2/seed0"
    run(programs / "sn-evaluate", f"run={trained}", cwd=tmp_path)
    evaluations = json.loads((trained / "result.json").read_text())["evaluations"]
    assert [each["by"] for each in evaluations] == ["training", "evaluate.py"]


def test_the_layers_need_only_torch_and_can_be_copied(tmp_path: Path) -> None:
    """All packages of the extra train are hidden, but those that torch imports if present."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.split("[<>=]", entry)[0] for entry in project["dependencies"]] == ["torch"]
    names = {re.split("[<>=]", entry)[0] for entry in project["optional-dependencies"]["train"]}
    assert {"timm", "hydra-core", "scikit-learn"} <= names
    imported = {"hydra-core": "hydra", "scikit-learn": "sklearn", "pyyaml": "yaml"}
    hidden = [imported.get(name, name) for name in sorted(names - {"numpy", "jinja2"})]
    for package in ("norms", "native"):
        shutil.copytree(ROOT / "sn_imagenet" / package, tmp_path / "sn_imagenet" / package)
    start = f"import sys; sys.modules.update(dict.fromkeys({hidden})); sys.path.insert(0, %r)\n"
    layer = start % str(tmp_path) + LAYER
    assert run(sys.executable, "-c", layer, cwd=tmp_path).startswith(str(tmp_path))
    train = start % str(ROOT) + "from sn_imagenet.programs import train; train()"
    done = subprocess.run([sys.executable, "-c", train], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "install with the extra train" in done.stderr
