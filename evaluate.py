"""Calibrate and evaluate trained runs; write their results, tables and plots.

python evaluate.py run=runs/imagenet/resnet50/sn/8x2/seed0
torchrun --nproc_per_node 8 evaluate.py run='runs/imagenet/*/*/*/seed*' table=top1.md
python evaluate.py run=RUN_DIR calibration.samples=all calibration.estimator=population
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sn_imagenet.errors import ConfigError
from sn_imagenet.evaluation import evaluate_run, find_run_directories
from sn_imagenet.replicas import rank, session, together
from sn_imagenet.reporting.report import report_runs


def main() -> None:
    with session() as current:

        @hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
        def command(composed: DictConfig) -> None:
            paths: list[Path] = []
            with current.cell(), together():
                overrides: Any = OmegaConf.to_container(composed)
                pattern, table = overrides.pop("run"), overrides.pop("table")
                if not pattern:
                    raise ConfigError("run= is missing: give a run directory, or a glob in quotes")
                paths = find_run_directories(pattern)
            results = {}
            for path in paths:
                with current.cell():
                    results[path] = evaluate_run(path, overrides)
            with current.cell():
                if rank() == 0 and results:
                    report_runs(results, Path(table) if table else None)

        command()


if __name__ == "__main__":
    main()
