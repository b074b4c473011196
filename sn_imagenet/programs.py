"""The programs ``train.py`` and ``evaluate.py``; installed, ``sn-train`` and ``sn-evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sn_imagenet.command_line import hydra_program, read_evaluation, read_experiment

if TYPE_CHECKING:
    from sn_imagenet.config import ExperimentConfig
    from sn_imagenet.session import Session


@hydra_program("", "config", read_experiment)
def train(config: ExperimentConfig, session: Session) -> None:
    from sn_imagenet.distributed import rank
    from sn_imagenet.training import train

    run = train(config)
    if rank() == 0 and config.evaluate:
        from sn_imagenet.reporting.report import report_runs  # imports matplotlib

        report_runs([run])


@hydra_program("evaluation", "evaluate", read_evaluation)
def evaluate(options: dict[str, Any], session: Session) -> None:
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
