"""report.html in a real browser: no console errors, no requests, links from cells to runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_files import REPOSITORY, config, finished_run, result, write_run, write_sweep

from sn_imagenet.reporting.page import repeat_command, write_page
from sn_imagenet.runs import find_runs

PAPER = REPOSITORY / "results" / "paper.yaml"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_sweep(folder / "runs", ("8x32", "8x2"), partial=True, epochs=3)
    return write_page(folder / "runs", folder / "out", PAPER).paths[0]


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *("--virtual-time-budget=5000", f"--user-data-dir={page.parent / 'profile'}", *options),
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_verdicts_come_first_and_the_page_is_self_contained(page: Path) -> None:
    html = page.read_text()
    assert html.index('id="verdicts1"') < html.index('id="study1"') < html.index('id="runs"')
    assert len(re.findall(r'class="claim ', html)) == 12
    assert len(re.findall(r"</span> on digits, resnet50_mini:", html)) == 12
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    targets = {source[1:] for source in sources if source.startswith("#")}
    assert targets <= set(re.findall(r'id="([^"]*)"', html))


@needs_chromium
def test_a_click_leads_from_a_cell_to_its_run(page: Path, tmp_path: Path) -> None:
    script = """<script>
      const link = document.querySelector('td a[data-runs]');
      const target = document.querySelector(link.getAttribute('href'));
      const before = target.open;
      link.click();
      setTimeout(() => {
        const first = () => document.querySelector('#list tbody tr').cells[3].textContent;
        const sort = document.querySelectorAll('#list th button')[3];
        sort.click(); sort.click();
        document.title = JSON.stringify({before, after: target.open, first: first(),
          command: target.querySelector('.command').textContent.slice(0, 15),
          requests: performance.getEntriesByType('resource')
            .filter((entry) => !entry.name.startsWith('data:')).length,
          overflow: document.documentElement.scrollWidth > innerWidth});
      }, 500);
    </script></body>"""
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", script))
    done = browse(clicked, "--dump-dom", "--window-size=500,900")
    state = json.loads(re.findall(r"<title>(.*?)</title>", done.stdout)[0])
    tops = [run.score_value() for run in find_runs(page.parents[1] / "runs").runs]
    assert state == {
        **{"before": False, "after": True, "command": "python train.py"},
        **{"first": f"{max(top for top in tops if top is not None):.2f}"},
        **{"requests": 0, "overflow": False},
    }
    assert "CONSOLE" not in done.stderr


def test_names_from_result_files_are_text(tmp_path: Path) -> None:
    markup = "<script>alert(1)</script>"
    settings = config(norm=markup)
    outcome = result(settings, 50.0)
    outcome["departures"].append({"item": markup, "paper": markup, "ours": markup})
    write_run(tmp_path / "runs", settings, outcome, folder="evil")
    html = write_page(tmp_path / "runs", tmp_path / "out", PAPER).paths[0].read_text()
    assert markup not in html
    assert "&lt;script&gt;alert(1)" in html


def test_the_command_repeats_the_run(tmp_path: Path) -> None:
    (study,) = find_runs(REPOSITORY / "results/depth/runs/digits/resnet26_mini/bn/8x2/seed1").runs
    names = "norm=bn batch=8x2 data=digits model=resnet26_mini"
    assert repeat_command(study, "depth") == f"python train.py -m sweep=depth {names} seed=1"
    alone = repeat_command(study).split()
    assert " ".join(alone[:6]) == f"python train.py {names}"
    assert alone[6:] == ["seed=1", "++protocol.base_lr=0.2", "++trainer.epochs=12"]
    # The data have their own name, and the sweep is another task's.
    photographs = REPOSITORY / "results/cifar10_small/runs/cifar10_small/resnet14_mini/bn/8x2/seed1"
    (run,) = find_runs(photographs).runs
    assert repeat_command(run, "cifar10_small").startswith(
        "python train.py -m sweep=cifar10_small norm=bn batch=8x2 data=imagefolder "
        "model=resnet14_mini data.name=cifar10_small seed=1 "
    )
    assert repeat_command(run, "nuclei").startswith("python train.py norm=bn batch=8x2 data=image")
    # One's own method, which the configs here do not compose: every value is given.
    finished_run(tmp_path, 90.0, norm="mine", seed=3)
    (run,) = find_runs(tmp_path).runs
    command = repeat_command(run, "depth")
    assert command.startswith(
        "python train.py -m sweep=depth norm=mine batch=8x2 data=digits model"
    )
    for part in ("seed=3", "++trainer.epochs=10", "++protocol.weight_decay=0.0001"):
        assert part in command.split()
