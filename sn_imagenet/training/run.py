"""A run from start to end: check, lock, resume, train, evaluate, write the result, unlock."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.distributed import (
    LostPeerError,
    broadcast_object,
    init_distributed,
    on_rank0,
    print_rank0,
    raise_on_all_ranks,
    rank,
    require_one_microbatch,
    set_determinism,
    world_size,
)
from sn_imagenet.evaluation import (
    Evaluation,
    add_evaluations,
    evaluate,
    importance_weight_records,
    make_result,
    origin,
)
from sn_imagenet.models import initialize_from_data, read_weights
from sn_imagenet.runs import (
    DIVERGED,
    FINISHED,
    Run,
    RunDirectory,
    RunError,
    checkpoint,
    run_from_result,
    write_json,
)
from sn_imagenet.runs.start import claimed, open_run, repair_finished
from sn_imagenet.tasks import Prepared, prepare
from sn_imagenet.tasks.task import require_task_placement
from sn_imagenet.training.stop import (
    EXIT_CODE,
    Interrupted,
    SignalHandler,
    print_once,
    raise_peer_interrupts,
)
from sn_imagenet.training.trainer import Trainer

WEIGHT_NORM_SAMPLES = 128  # of the batch that initializes weight normalization


def train(config: ExperimentConfig) -> Run:
    """Train and evaluate one run from the start or its last checkpoint, and write its result.

    Returns:
        The run, as its ``result.json`` describes it. A finished run is returned as it is.

    Raises:
        UserError: an error that the user can fix; no work is lost.
        Interrupted: a signal stopped the run; its checkpoint is saved, the exit code is 75.
    """
    with SignalHandler() as signals:
        try:
            return _train(config, signals)
        except Interrupted as interrupt:
            if not interrupt.reported:
                print_once(
                    f"{config.run_dir}: Interrupted between two steps; no step is lost. "
                    f"Run the same command to resume (exit code {EXIT_CODE})."
                )
            raise


def _train(config: ExperimentConfig, signals: SignalHandler) -> Run:
    init_distributed(device=config.trainer.device)
    directory = RunDirectory(Path(config.run_dir))
    with raise_on_all_ranks():
        start = open_run(directory, config)
    if start.run is not None:
        return _report_done(directory, config, start.run)

    if start.damage:
        print_rank0(f"warning: {start.damage}; it is written again from the last checkpoint")

    with raise_on_all_ranks():
        prepared = prepare(config)
        placement = require_task_placement(prepared.task, config, world_size())
        if config.init and not start.resumes:
            saved = read_weights(Path(config.init))
            changed = prepared.task.load_initial(prepared.network, prepared.data, saved)
            if saved.norm.args != config.norm.args:
                changed.append(f"norm.args={config.norm.args} instead of {saved.norm.args}")
            print_rank0(f"starting from {config.init}" + "".join(f"; {part}" for part in changed))
        elif not start.resumes:
            initialize_weight_norm(prepared)
        fixed = placement.replicas_per_pass != config.trainer.replicas_per_pass  # by the task
        require_one_microbatch(placement, prepared.network, fixed)
        set_determinism(config.trainer.deterministic, prepared.device)
        trainer = Trainer(prepared, placement, directory, signals)
    with on_rank0(claimed(directory, config)) as claim:
        try:
            with raise_peer_interrupts():
                start = broadcast_object(claim)
                if start.run is not None:
                    # another process has finished it meanwhile
                    return _report_done(directory, config, start.run)
                with raise_on_all_ranks():
                    if rank() == 0 and not start.evaluations and not start.damage:
                        # Of an earlier start; the batch average is that of its weights.
                        directory.result.unlink(missing_ok=True)
                        directory.batch_average.unlink(missing_ok=True)
                with trainer.files:
                    trainer.start()
                    diverged = trainer.fit()
                earlier = list(start.evaluations)
                return _finish(prepared, directory, trainer, diverged, earlier)
        except LostPeerError:
            raise  # the run has not failed: it resumes from its checkpoint
        except Exception as error:
            # Any rank may write it, because torchrun ends the others. The first error is the cause.
            with suppress(RunError):
                if directory.read_result() is None:
                    failed = make_result(prepared, status="failed", error=f"{error}")
                    write_json(directory.result, failed)
            raise


def initialize_weight_norm(prepared: Prepared) -> None:
    """Initialize weight normalization on one batch of the training data, which depends on the seed
    alone and is the same on every rank."""
    config, train = prepared.config, prepared.data.train
    samples = min(WEIGHT_NORM_SAMPLES, len(train))

    def forward(network: nn.Module) -> None:
        sampling = {"minibatch": samples, "samples": samples, "minibatches_per_batch": 1}
        on_each_rank = {"seed": config.seed, "rank": 0, "world_size": 1, "skip": 0}
        for batch in prepared.task.calibration_loader(
            train, workers=0, device=prepared.device, **sampling, **on_each_rank
        ):
            prepared.task.forward(network, batch)

    initialize_from_data(prepared.network, forward)


def _report_done(directory: RunDirectory, config: ExperimentConfig, run: Run) -> Run:
    with raise_on_all_ranks():
        for line in repair_finished(directory, config) if rank() == 0 else ():
            print_rank0(f"warning: {line}")
    status = DIVERGED if run.state == DIVERGED else FINISHED
    print_rank0(f"{run.path}: already {status}, nothing to do")
    return run


def _finish(
    prepared: Prepared,
    directory: RunDirectory,
    trainer: Trainer,
    diverged: dict[str, Any] | None,
    earlier: list[dict[str, Any]],
) -> Run:
    """Save the trained network, evaluate it, and write the result. Collective.

    Args:
        earlier: evaluations by earlier starts.
    """
    training = trainer.summary()
    evaluated: list[Evaluation] = []
    if diverged is not None:
        print_rank0(
            f"{directory.path}: diverged at step {diverged['step']} (epoch {diverged['epoch']}): "
            f"{diverged['cause']}"
        )
    else:
        with raise_on_all_ranks():
            if rank() == 0:
                state = {
                    "model": prepared.network.state_dict(),
                    "config": prepared.config.to_dict(),
                    "training": training,
                    "provenance": prepared.provenance,
                    "data_fingerprint": prepared.data.fingerprint,
                    "classes": list(prepared.data.classes),
                }
                checkpoint.save(directory.final, state)
        if prepared.config.evaluate:
            weights = {"file": directory.final.name, "epoch": trainer.epoch, "step": trainer.step}
            evaluated = evaluate(prepared, origin=origin(weights, "training"))
    run = None
    with raise_on_all_ranks():
        if rank() == 0:
            result = make_result(
                prepared,
                status="finished" if diverged is None else "diverged",
                diverged=diverged,
                training=training,
                evaluations=earlier if diverged is None else (),
                importance_weights=importance_weight_records(prepared.network),
            )
            result = add_evaluations(result, directory, evaluated)
            write_json(directory.result, result)
            run = run_from_result(result, directory.path)
            score = run.score_value()
            if score is not None:
                with trainer.recorder.tracker() as tracker:
                    tracker.finish(score)
    finished: Run = broadcast_object(run)
    return finished
