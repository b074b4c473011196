"""The life of a run: check, claim, resume, train, evaluate, write, release."""

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
    """Run one cell to its result, or continue it from its last checkpoint.

    Args:
        draw_weights: draws the importance weights for the live view; none are shown without.

    Returns:
        What ``result.json`` holds; a finished run's as it lies there.

    Raises:
        UserError: something that the user can mend, before any work is lost.
        Interrupted: told to by a signal; its checkpoint is saved, the program ends with 75.
    """
    with SignalHandler() as stop:
        try:
            return _train(config, stop, draw_weights)
        except Interrupted as stopped:
            if not stopped.reported:
                print_once(
                    f"{config.run_dir}: told to stop between two steps; no step is lost, the same "
                    f"command continues (exit code {EXIT_CODE})"
                )
            raise


def _train(
    config: ExperimentConfig, stop: SignalHandler, draw_weights: DrawWeights | None
) -> dict[str, Any]:
    init_distributed()
    directory = RunDirectory(Path(config.run_dir))
    with raise_on_all_ranks():
        require_tracker_installed(config.tracker)
        directory.check(config)
        checkpoint.require_same_experiment(directory, config)
        done = _done_before(directory, config)
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
            print_rank0(f"starting from {config.init}" + "".join(f"; {what}" for what in changed))
        require_one_microbatch(placement, prepared.network)
        if config.trainer.compile:
            require_compilable(config.trainer.compile, placement, prepared.network)
        set_determinism(config.trainer.deterministic, prepared.device)
    with raise_on_all_ranks():
        if rank() == 0:
            directory.claim(config)
    resulting = partial(
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
                    # Again: another start may have come to its end while this one prepared.
                    done = _done_before(directory, config)
                    if done is None:
                        earlier = _make_way(directory)
            done, earlier = broadcast_object((done, earlier))
            if done is not None:
                return done
            with closing(Trainer(prepared, placement, directory, stop, draw_weights)) as trainer:
                diverged = trainer.fit()
            return _finish(prepared, directory, trainer, diverged, earlier, resulting)
    except (LostPeerError, RunInUseError):
        raise  # not this run's failure: it continues where it was saved, or elsewhere
    except Exception as error:
        # By whichever rank it befell, since torchrun then ends the others; the first is the cause.
        with suppress(RunError):
            if directory.read_result() is None:
                directory.write_result(resulting(status="failed", error=f"{error}"))
        raise
    finally:
        if rank() == 0:
            directory.release()


def _done_before(directory: RunDirectory, config: ExperimentConfig) -> dict[str, Any] | None:
    """The result that an earlier start came to; None if there is something left to do.

    Raises:
        RunError: there is one that cannot be read.
    """
    done = directory.read_result()
    if done is None or done["status"] == "failed":
        return None
    if config.evaluate and run_from_result(done, directory.path).state == NOT_EVALUATED:
        return None
    print_rank0(f"{directory.path}: already {done['status']}, nothing to do")
    return done


def _make_way(directory: RunDirectory) -> list[dict[str, Any]]:
    """Remove the result of an earlier start, but one with evaluations of the training that goes on:
    they are returned, and stay on the disk until more are beside them.
    """
    result = directory.read_result()
    if result is not None and result["evaluations"] and directory.last.exists():
        return list(result["evaluations"])
    directory.raise_if_lock_lost()
    directory.result.unlink(missing_ok=True)
    directory.batch_average.unlink(missing_ok=True)  # of weights that are trained anew
    return []


def _finish(
    prepared: Prepared,
    directory: RunDirectory,
    trainer: Trainer,
    diverged: dict[str, Any] | None,
    earlier: list[dict[str, Any]],
    make: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Keep the trained network, evaluate it, write the result. Collective.

    Args:
        earlier: the evaluations that were made of it before.
        make: :func:`make_result` of this run.
    """
    training = trainer.summary()
    resulting = partial(
        make, training=training, importance_weights=importance_weight_records(prepared.network)
    )
    if diverged is not None:
        print_rank0(
            f"{directory.path}: diverged at step {diverged['step']} (epoch {diverged['epoch']}): "
            f"{diverged['cause']}"
        )
        result = resulting(status="diverged", diverged=diverged)
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
        found: list[Evaluation] = []
        if prepared.config.evaluate:
            weights = {"file": directory.final.name, "epoch": trainer.epoch, "step": trainer.step}
            found = record_origin(evaluate(prepared), weights=weights, by="training")
        result = resulting(status="finished", evaluations=earlier)
        if rank() == 0:
            result = add_evaluations(result, directory, found)
    if rank() == 0:
        directory.write_result(result)
        top1 = run_from_result(result, directory.path).top1()
        if top1 is not None and trainer.log is not None:
            trainer.log.finish(prepared.config, top1)
    return result
