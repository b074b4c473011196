"""Calibrate and evaluate trained runs, and write their results, tables and figures.

python evaluate.py run=runs/imagenet/resnet50/sn/8x2/seed0
torchrun --nproc_per_node 8 evaluate.py run='runs/imagenet/*/*/*/seed*' table=top1.md
python evaluate.py run=RUN_DIR calibration.samples=all calibration.estimator=population
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sn_imagenet.output import disable_interrupt_traceback

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    disable_interrupt_traceback()
    import hydra
    from omegaconf import OmegaConf

    from sn_imagenet.command_line import command_line
    from sn_imagenet.errors import ConfigError

    with command_line() as line:

        @hydra.main(version_base="1.3", config_path="configs/evaluation", config_name="evaluate")
        def command(composed: DictConfig) -> None:
            overrides: Any = OmegaConf.to_container(composed)
            pattern, table = overrides.pop("run"), overrides.pop("table")
            with line.exit_on_error():
                if not pattern:
                    raise ConfigError("run= is missing: give a run directory or a quoted glob")

            from sn_imagenet.distributed import raise_on_all_ranks, rank
            from sn_imagenet.evaluation import EvaluationRequest, evaluate_run, find_run_directories
            from sn_imagenet.reporting.report import report_runs

            current = line.session
            paths: list[Path] = []
            with current.run(), raise_on_all_ranks():
                request = EvaluationRequest.from_config(overrides)
                paths = find_run_directories(pattern)
            results = {}
            for path in paths:
                with current.run():
                    results[path] = evaluate_run(path, request)
            with current.run():
                if rank() == 0 and results:
                    report_runs(results, Path(table) if table else None)

        command()


if __name__ == "__main__":
    main()
