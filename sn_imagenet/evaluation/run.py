"""Evaluate trained runs from their directories."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

from sn_imagenet.config import from_dict
from sn_imagenet.distributed import (
    broadcast_object,
    init_distributed,
    on_rank0,
    print_rank0,
    raise_on_all_ranks,
    rank,
)
from sn_imagenet.errors import UserError
from sn_imagenet.evaluation.evaluate import Evaluation, evaluate, importance_weight_records
from sn_imagenet.evaluation.request import EvaluationRequest
from sn_imagenet.evaluation.result import add_evaluations, make_result, origin
from sn_imagenet.runs import (
    RunDirectory,
    RunError,
    checkpoint,
    config_differences,
    run_from_result,
    write_atomically,
)
from sn_imagenet.runs.files import FINAL, advice, write_json
from sn_imagenet.runs.reading import mapping
from sn_imagenet.runs.scores import Score
from sn_imagenet.runs.start import blame_config, claimed, require_same_training
from sn_imagenet.tasks import Prepared, build_task, prepare, require_same_data


def find_run_directories(pattern: str) -> list[Path]:
    """The run directories that match a path or a glob, sorted.

    Raises:
        RunError: no run directory matches.
    """
    literal = [Path(pattern)]  # a path may contain characters that are special in a glob
    for paths in (literal, [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]):
        found = [RunDirectory(path) for path in paths]
        if runs := [run.path for run in found if run.config.exists() or run.result.exists()]:
            return runs
    raise RunError(
        f"run={pattern}: no run directory there (one holds a config.yaml); expected a path "
        "such as runs/digits/resnet50_mini/sn/8x2/seed0, or a glob in quotes"
    )


def evaluate_run(path: Path, request: EvaluationRequest) -> dict[str, Any]:
    """Calibrate and evaluate a trained run, and append the evaluations to its ``result.json``.
    The other entries do not change. A diverged run is not evaluated.

    Args:
        path: the run directory.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: training has not finished, the checkpoint is not of this run, or the data have
            changed.
    """
    init_distributed()
    directory = RunDirectory(path)
    with raise_on_all_ranks(), blame_config(directory):
        previous = directory.read_result()
        if previous is not None and previous["status"] == "diverged":
            print_rank0(f"{path}: diverged, nothing to evaluate")
            return previous
        if previous is not None and request.statistics in (
            run_from_result(previous, path).counted_evaluations
        ):
            print_rank0(f"{path}: already evaluated with {request.statistics}, nothing to do")
            return previous
        run_config = directory.read_config()
        config = from_dict(run_config)
        directory.check(config)
        final = checkpoint.load_final(directory, run_config)
        given = {
            section: {**run_config[section], **{k: v for k, v in own.items() if v is not None}}
            for section, own in request.values.items()
        }
        prepared = prepare(from_dict({**run_config, **given}))
        if unknown := request.artifacts.keys() - set(prepared.task.artifacts):
            known = ", ".join(prepared.task.artifacts) or "none"
            raise UserError(
                f"artifacts.{min(unknown)}: the task of {path} writes no such file; expected one "
                f"of {known}"
            )
        if previous is not None and previous["status"] == "finished":
            require_same_training(directory, final, previous["training"])
        weights = _load_final(prepared.network, directory, final)
        importance = importance_weight_records(prepared.network)
        if request.checkpoint != FINAL:
            weights = _load_other(prepared.network, directory, run_config, request.checkpoint)
        _require_matching_data(path, run_config, final, prepared)
    result: dict[str, Any] = {}
    with on_rank0(claimed(directory, config)):
        evaluations = evaluate(
            prepared,
            samples=request.samples,
            draws=request.draws,
            artifacts=request.artifacts,
            origin=origin(weights, "evaluate.py", prepared.provenance),
            statistics=request.statistics,
        )
        with raise_on_all_ranks():
            if rank() == 0:
                # Read again, now that no other process can write it.
                result = directory.read_result() or {}
                if result.get("status") != "finished":
                    # Imported weights have no fingerprint: the present data become the run's.
                    fingerprint = final["data_fingerprint"] or prepared.data.fingerprint
                    trained = replace(
                        prepared,
                        config=config,
                        task=build_task(config),
                        data=replace(prepared.data, fingerprint=fingerprint),
                        provenance=final["provenance"],
                    )
                    result = make_result(
                        trained,
                        status="finished",
                        training=final["training"],
                        importance_weights=importance,
                    )
                result = add_evaluations(result, directory, evaluations)
                write_json(directory.result, result)
                _write_artifacts(directory, request, prepared, evaluations)
        _print_spread(path, prepared.task.score, evaluations)
    return broadcast_object(result)


def _load_final(
    network: nn.Module, directory: RunDirectory, final: dict[str, Any]
) -> dict[str, Any]:
    """Load the weights of ``final``, the content of ``final.pt``. Returns the file, epoch and step
    for the record of an evaluation.

    Raises:
        RunError: they are of another network, or it lacks entries.
    """
    with _not_of_this_run(directory.final):
        for key in ("training", "provenance", "data_fingerprint"):
            mapping(final[key])
        steps = final["training"]["steps"]  # 0 for imported weights
        epoch = steps // final["training"]["steps_per_epoch"] if steps else 0
        network.load_state_dict(final["model"])
    return {"file": FINAL, "epoch": epoch, "step": steps}


def _load_other(
    network: nn.Module, directory: RunDirectory, run_config: dict[str, Any], name: str
) -> dict[str, Any]:
    """As :func:`_load_final`, for the checkpoint ``name``, a file in the directory or a path."""
    path = directory.path / name
    if not path.exists() and not Path(name).exists():
        raise RunError(f"checkpoint={name}: no such file, in {directory.path} or as a path")
    path = path if path.exists() else Path(name)
    state = checkpoint.load(path)
    with _not_of_this_run(path):
        differences = config_differences(mapping(state["config"]), run_config)
        epoch, steps = int(state["epoch"]), int(state["step"])
        network.load_state_dict(state["model"])
    if differences:
        raise RunError(
            f"checkpoint={name} is from another experiment than {directory.path}: "
            f"{'; '.join(differences)}"
        )
    return {"file": name, "epoch": epoch, "step": steps}


@contextmanager
def _not_of_this_run(path: Path) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{path} is not a checkpoint of this run: {reason.splitlines()[0]}; {advice(path)}"
        ) from error


def _require_matching_data(
    path: Path, run_config: dict[str, Any], final: dict[str, Any], prepared: Prepared
) -> None:
    """Require the run's data, or validation images under another name with the run's classes.

    Raises:
        UserError: the data are neither.
    """
    if run_config.get("imported"):
        return  # the training images are unknown
    name, then = prepared.config.data.name, final["data_fingerprint"]
    if name == run_config["data"]["name"]:
        try:
            require_same_data(path, then, prepared.data)
        except UserError as error:
            raise UserError(
                f"{error}. To evaluate other images of the same classes, give them a data.name="
            ) from error
        return
    # The batch average is computed from the run's training images.
    now = prepared.data.fingerprint
    require_same_data(path, {**then, "val": now.get("val")}, prepared.data)
    classes, trained = prepared.data.classes, final.get("classes")  # older runs have no classes
    if trained is not None and list(classes) != list(trained):
        raise UserError(
            f"data.name={name}: its {len(classes)} classes are not the {len(trained)} that {path} "
            "was trained with; expected the same names"
        )


def _write_artifacts(
    directory: RunDirectory,
    request: EvaluationRequest,
    prepared: Prepared,
    evaluations: Sequence[Evaluation],
) -> None:
    evaluators = {_label(evaluation.record): evaluation.evaluator for evaluation in evaluations}
    contents = prepared.task.write_artifacts(prepared.data, evaluators, request.artifacts)
    for name, content in contents.items():
        print_rank0(f"{write_atomically(directory.path / name, content)}")


def _label(record: dict[str, Any]) -> str:
    """The evaluation's name in a file: ``moving_average``, ``batch_average_50000_seed0``."""
    calibration = record["calibration"]
    suffix = f"_{calibration['samples_requested']}_seed{calibration['seed']}" if calibration else ""
    return f"{record['statistics']}{suffix}"


def _print_spread(path: Path, score: Score, evaluations: Sequence[Evaluation]) -> None:
    """Print the spread of the score over the draws of each batch average."""
    draws: dict[Any, list[float]] = {}
    for evaluation in evaluations:
        if evaluation.record["calibration"]:
            samples = evaluation.record["calibration"]["samples_requested"]
            draws.setdefault(samples, []).append(evaluation.record[score.key])
    for samples, values in draws.items():
        if len(values) > 1:
            print_rank0(
                f"{path}: batch average of {samples} samples, {len(values)} draws: {score.label} "
                f"{fmean(values):.2f} +- {stdev(values):.2f}, {min(values):.2f} to "
                f"{max(values):.2f}"
            )
