"""The wheel works without this checkout."""

from __future__ import annotations

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


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_installs_working_layers_in_an_empty_environment(tmp_path: Path) -> None:
    """Nothing is downloaded: a .pth file adds this environment's packages."""
    source = tmp_path / "source"
    source.mkdir()
    tracked = run("git", "ls-files", "sn_imagenet", "hydra_plugins", cwd=ROOT).splitlines()
    for name in (*tracked, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
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


def test_the_dev_extra_includes_every_other_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (requirement,) = (entry for entry in extras["dev"] if entry.startswith(project["name"]))
    included = requirement.removeprefix(f"{project['name']}[").rstrip("]").split(",")
    assert set(included) == extras.keys() - {"dev"}
