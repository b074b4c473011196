"""Calibrate and evaluate trained runs, and write their results, tables and figures.

python evaluate.py run=runs/imagenet/resnet50/sn/8x2/seed0
torchrun --nproc_per_node 8 evaluate.py run='runs/imagenet/*/*/*/seed*' table=top1.md
python evaluate.py run=RUN_DIR calibration.samples=all calibration.estimator=population
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sn_imagenet.command_line import hydra_program, read_evaluation

if TYPE_CHECKING:
    from sn_imagenet.session import Session


@hydra_program("configs/evaluation", "evaluate", read_evaluation)
def main(options: dict[str, Any], session: Session) -> None:
    from sn_imagenet.distributed import raise_on_all_ranks, rank
    from sn_imagenet.evaluation import EvaluationRequest, evaluate_run, find_run_directories
    from sn_imagenet.reporting.report import report_runs
    from sn_imagenet.runs import run_from_result

    with raise_on_all_ranks():
        request = EvaluationRequest.from_config(options)
        paths = find_run_directories(options["run"])
    runs = []
    for path in paths:
        with session.run():
            runs.append(run_from_result(evaluate_run(path, request), path))
    if rank() == 0 and runs:
        report_runs(runs, Path(options["table"]) if options["table"] else None)


if __name__ == "__main__":
    main()
