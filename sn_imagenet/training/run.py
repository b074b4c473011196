"""A run from start to end: check, lock, resume, train, evaluate, write the result, unlock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sn_imagenet.config import ExperimentConfig
from sn_imagenet.distributed import (
    LostPeerError,
    Placement,
    broadcast_object,
    init_distributed,
    print_rank0,
    raise_on_all_ranks,
    rank,
    require_one_microbatch,
    set_determinism,
    world_size,
)
from sn_imagenet.evaluation import (
    Evaluation,
    Prepared,
    add_evaluations,
    evaluate,
    importance_weight_records,
    make_result,
    prepare,
    record_origin,
)
from sn_imagenet.models import start_from
from sn_imagenet.runs import (
    NOT_EVALUATED,
    RunDirectory,
    RunError,
    RunInUseError,
    checkpoint,
    run_from_result,
)
from sn_imagenet.training.compiled import require_compilable
from sn_imagenet.training.stop import (
    EXIT_CODE,
    Interrupted,
    SignalHandler,
    print_once,
    raise_peer_interrupts,
)
from sn_imagenet.training.trackers import require_tracker_installed
from sn_imagenet.training.trainer import DrawWeights, Trainer


def train(config: ExperimentConfig, draw_weights: DrawWeights | None = None) -> dict[str, Any]:
    """Train and evaluate one run from the start or its last checkpoint, and write its result.

    Args:
        draw_weights: draws the importance weights for the tracker; None for no such figure.

    Returns:
        The content of ``result.json``; of a finished run, the existing file.

    Raises:
        UserError: an error that the user can fix; no work is lost.
        Interrupted: a signal stopped the run; its checkpoint is saved, the exit code is 75.
    """
    with SignalHandler() as signals:
        try:
            return _train(config, signals, draw_weights)
        except Interrupted as interrupt:
            if not interrupt.reported:
                print_once(
                    f"{config.run_dir}: Interrupted between two steps; no step is lost. "
                    f"Run the same command to resume (exit code {EXIT_CODE})."
                )
            raise


def _train(
    config: ExperimentConfig, signals: SignalHandler, draw_weights: DrawWeights | None
) -> dict[str, Any]:
    init_distributed()
    directory = RunDirectory(Path(config.run_dir))
    with raise_on_all_ranks():
        require_tracker_installed(config.tracker)
        directory.check(config)
        checkpoint.require_same_experiment(directory, config)
        done = _earlier_result(directory, config)
    if done is not None:
        return done

    with raise_on_all_ranks():
        placement = Placement(
            config.batch.gpus,
            config.batch.samples_per_gpu,
            world_size(),
            rank(),
            config.trainer.replicas_per_pass,
        )
        prepared = prepare(config)
        if config.init and not (directory.last.exists() or directory.previous.exists()):
            classes = prepared.data.classes
            changed = start_from(Path(config.init), prepared.network, config.norm, classes)
            print_rank0(f"starting from {config.init}" + "".join(f"; {part}" for part in changed))
        require_one_microbatch(placement, prepared.network)
        if config.trainer.compile:
            require_compilable(config.trainer.compile, placement, prepared.network)
        set_determinism(config.trainer.deterministic, prepared.device)
    with raise_on_all_ranks():
        if rank() == 0:
            directory.claim(config)
    make_run_result = partial(
        make_result,
        config,
        fingerprint=prepared.data.fingerprint,
        provenance=prepared.provenance,
    )
    try:
        with raise_peer_interrupts():
            earlier: list[dict[str, Any]] = []
            with raise_on_all_ranks():
                if rank() == 0:
                    # Check again: another process may have finished the run in the meantime.
                    done = _earlier_result(directory, config)
                    if done is None:
                        earlier = _remove_old_result(directory)
            done, earlier = broadcast_object((done, earlier))
            if done is not None:
                return done
            with closing(Trainer(prepared, placement, directory, signals, draw_weights)) as trainer:
                diverged = trainer.fit()
            return _finish(prepared, directory, trainer, diverged, earlier, make_run_result)
    except (LostPeerError, RunInUseError):
        raise  # the run has not failed: it resumes from its checkpoint, or runs elsewhere
    except Exception as error:
        # Any rank may write it, because torchrun ends the others. The first error is the cause.
        with suppress(RunError):
            if directory.read_result() is None:
                directory.write_result(make_run_result(status="failed", error=f"{error}"))
        raise
    finally:
        if rank() == 0:
            directory.release()


def _earlier_result(directory: RunDirectory, config: ExperimentConfig) -> dict[str, Any] | None:
    """The result of an earlier start if the run is complete, otherwise None.

    Raises:
        RunError: the result exists but cannot be read.
    """
    done = directory.read_result()
    if done is None or done["status"] == "failed":
        return None
    if config.evaluate and run_from_result(done, directory.path).state == NOT_EVALUATED:
        return None
    print_rank0(f"{directory.path}: already {done['status']}, nothing to do")
    return done


def _remove_old_result(directory: RunDirectory) -> list[dict[str, Any]]:
    """Remove the result of an earlier start. But if it has evaluations and its training can resume,
    return these and keep the file until the result is written again.
    """
    result = directory.read_result()
    if result is not None and result["evaluations"] and directory.last.exists():
        return list(result["evaluations"])
    directory.raise_if_lock_lost()
    directory.result.unlink(missing_ok=True)
    directory.batch_average.unlink(missing_ok=True)  # of weights that are trained again
    return []


def _finish(
    prepared: Prepared,
    directory: RunDirectory,
    trainer: Trainer,
    diverged: dict[str, Any] | None,
    earlier: list[dict[str, Any]],
    make_run_result: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Save the trained network, evaluate it, and write the result. Collective.

    Args:
        earlier: evaluations by earlier starts.
        make_run_result: :func:`make_result` with the arguments of this run.
    """
    training = trainer.summary()
    make_trained = partial(
        make_run_result,
        training=training,
        importance_weights=importance_weight_records(prepared.network),
    )
    if diverged is not None:
        print_rank0(
            f"{directory.path}: diverged at step {diverged['step']} (epoch {diverged['epoch']}): "
            f"{diverged['cause']}"
        )
        result = make_trained(status="diverged", diverged=diverged)
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
                directory.raise_if_lock_lost()
                checkpoint.save(directory.final, state)
        evaluated: list[Evaluation] = []
        if prepared.config.evaluate:
            weights = {"file": directory.final.name, "epoch": trainer.epoch, "step": trainer.step}
            evaluated = record_origin(evaluate(prepared), weights=weights, by="training")
        result = make_trained(status="finished", evaluations=earlier)
        if rank() == 0:
            result = add_evaluations(result, directory, evaluated)
    if rank() == 0:
        directory.write_result(result)
        top1 = run_from_result(result, directory.path).top1()
        if top1 is not None and trainer.log is not None:
            trainer.log.finish(prepared.config, top1)
    return result
