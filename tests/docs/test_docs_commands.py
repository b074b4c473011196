"""All commands, options and blocks of code in the README and in docs/ work."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from doc_runs import Folders, is_slow, run_command
from doc_text import PAGES, ROOT, blocks, commands, is_command, overrides
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

CUSTOM_NORM = ROOT / "docs" / "custom-norm.md"
RUN = Path("runs/imagenet/resnet14_mini/sn/8x2/seed0")


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout, with one handwritten digit per class in train and in val."""
    root = tmp_path_factory.mktemp("imagenet")
    digits = load_digits().images
    for number in range(1000):
        for part in ("train", "val"):
            file = root / part / f"n{number:08}" / f"{part}.JPEG"
            file.parent.mkdir(parents=True)
            image = Image.fromarray((digits[number] * 15.9).astype("uint8"))
            image.convert("RGB").save(file, "JPEG")
    return root


@pytest.fixture(scope="session")
def trained(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``runs``, which has the README's first run, for commands that read runs."""
    folder = tmp_path_factory.mktemp("trained")
    folders = Folders(folder, imagenet, folder / RUN, tmp_path_factory.mktemp("logs"))
    run_command("torchrun train.py norm=sn batch=8x2 data.root=/data/imagenet", folders)
    assert (folder / RUN / "result.json").is_file()
    return folder


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A folder with the custom method of its page."""
    configs = tmp_path / "my_configs" / "norm"
    configs.mkdir(parents=True)
    (tmp_path / "my_norm.py").write_text(blocks("python", pages=(CUSTOM_NORM,))[0])
    (configs / "half.yaml").write_text(blocks("yaml", pages=(CUSTOM_NORM,))[0])
    return tmp_path


def _marked(command: str) -> object:
    return pytest.param(command, marks=[pytest.mark.slow] if is_slow(command) else [])


@pytest.mark.parametrize("command", [_marked(command) for command in commands()])
def test_the_command_works(command: str, cwd: Path, imagenet: Path, trained: Path) -> None:
    trains = re.search(r"\btrain\.py\b|make demo", command)
    if not trains:
        shutil.copytree(trained / "runs", cwd / "runs")
    output = run_command(command, Folders(cwd, imagenet, cwd / RUN, cwd / "logs"))
    assert output.strip()
    if "train.py" in command and not re.search(r"--cfg|dry_run|cifar10|submitit", command):
        results = list((cwd / "runs").rglob("result.json"))
        assert len(results) == 1, output
        assert '"finished"' in results[0].read_text()


@pytest.mark.parametrize(
    "page", ["docs/studies.md", "configs/sweep/cifar10_small.yaml", "configs/sweep/search.yaml"]
)
def test_a_study_of_folders_may_read_all_of_cifar10(page: str) -> None:
    """The folders of the study would not be read, which is refused."""
    text = (ROOT / page).read_text().replace("\\\n#", "")
    (words,) = re.findall(r"-m (sweep=\w+ data=cifar10 [^`\n]*)", text)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        data = compose("config", [word for word in words.split() if "=" in word]).data
    assert (data.source, data.train, data.val) == ("cifar10", None, None)


def test_blocks_without_a_language_have_no_commands() -> None:
    lines = [line for block in blocks("") for line in block.splitlines()]
    assert lines
    assert not [line for line in lines if is_command(line)]


@pytest.mark.parametrize("override", overrides())
def test_the_option_exists(override: str) -> None:
    key, _, value = override.partition("=")
    known = []
    for folder, *base in _BASES:
        with initialize_config_dir(str(ROOT / folder), version_base="1.3"):
            known.append(_takes(key, value, *base))
    assert any(known), override


_BASES = (
    ("configs", "config", "hydra/launcher=submitit_slurm"),
    ("configs", "config", "data=imagefolder"),
    ("configs", "config", "task=stylization"),
    ("configs/evaluation", "evaluate"),
)


def _takes(key: str, value: str, config: str, *chosen: str) -> bool:
    """Whether the config has ``key``, and accepts ``value`` if it is given."""
    if not value and (ROOT / "configs" / key).is_dir():
        return True
    try:
        more = [f"{key}={value}"] if value and f"{key}={value}" not in chosen else []
        composed = compose(config, [*chosen, *more], return_hydra_config=True)
    except HydraException:
        return False
    missing = object()
    known = OmegaConf.select(composed, key, default=missing, throw_on_resolution_failure=False)
    return value != "" or known is not missing


def test_the_python_blocks_run() -> None:
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "docs", "exec"), {})


def test_links_have_targets() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
            if not target.startswith("http"):
                linked = page.parent / target if target else page
                assert linked.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in _anchors(linked), f"{page.name}: {target}#{anchor}"


def _anchors(page: Path) -> list[str]:
    """The anchors of the headings, as Markdown hosts name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
