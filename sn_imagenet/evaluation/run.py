"""Evaluate runs that are already trained, from their directories."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

from sn_imagenet.config import from_dict
from sn_imagenet.distributed import (
    broadcast_object,
    init_distributed,
    print_rank0,
    raise_on_all_ranks,
    rank,
)
from sn_imagenet.errors import UserError
from sn_imagenet.evaluation.detail import Detail, classes_csv, logits_npz
from sn_imagenet.evaluation.evaluate import (
    Evaluated,
    eval_batch_size,
    evaluate,
    importance_weight_records,
)
from sn_imagenet.evaluation.prepare import Prepared, prepare, require_same_data
from sn_imagenet.evaluation.request import EvaluationRequest
from sn_imagenet.evaluation.result import add_evaluations, make_result, signed
from sn_imagenet.runs import (
    RunDirectory,
    RunError,
    checkpoint,
    config_differences,
    write_atomically,
)
from sn_imagenet.runs.files import FINAL, RESULT


def find_run_directories(pattern: str) -> list[Path]:
    """The run directories that a path or a glob names, sorted.

    Raises:
        RunError: there is none.
    """
    if RunDirectory(Path(pattern)).config.exists():
        return [Path(pattern)]  # of that very name, whatever a glob makes of it
    found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    runs = [path for path in found if RunDirectory(path).config.exists()]
    if not runs:
        raise RunError(
            f"run={pattern}: no run directory there (one holds a config.yaml); expected a path "
            "such as runs/digits/resnet50_mini/sn/8x2/seed0, or a glob in quotes"
        )
    return runs


def evaluate_run(path: Path, request: EvaluationRequest) -> dict[str, Any]:
    """Calibrate and evaluate a trained run, and append what comes of it to its ``result.json``.
    What the training wrote there stays as it is.

    Args:
        path: the run's directory.

    Returns:
        What ``result.json`` now holds; that of a diverged run as it is.

    Raises:
        UserError: the run is not trained to its end, the checkpoint is not of it, or its data is
            not the same any more.
    """
    init_distributed()
    directory = RunDirectory(path)
    with raise_on_all_ranks():
        before = directory.read_result()
        if before is not None and before["status"] == "diverged":
            print_rank0(f"{path}: diverged, there is nothing to evaluate")
            return before
        if not directory.final.exists():
            raise RunError(
                f"{path} has no {directory.final.name}: it is not trained to its end; continue it "
                "with the command that started it"
            )
        own = directory.read_config()
        prepared = prepare(from_dict(_replaced(own, request.values)))
        trained = _loaded(prepared.network, directory.final)
        importance = importance_weight_records(prepared.network)
        weights = _weights_to_evaluate(
            prepared.network, directory, own, request.checkpoint, trained
        )
        _require_fitting_data(path, own, trained, prepared)
    config = from_dict(own)
    with raise_on_all_ranks():
        if rank() == 0:
            directory.claim(config)
    try:
        found = signed(
            evaluate(
                prepared,
                samples=request.samples,
                draws=request.draws,
                new_detail=_details(prepared, request),
            ),
            weights=weights,
            by="evaluate.py",
            provenance=prepared.provenance,
        )
        result: dict[str, Any] = {}
        with raise_on_all_ranks():
            if rank() == 0:
                # Read anew, now that nobody else writes here.
                result = directory.read_result() or {}
                if result.get("status") != "finished":
                    result = make_result(
                        config,
                        status="finished",
                        training=trained["training"],
                        provenance=trained["provenance"],
                        # Imported weights do not say of which; from now on these are the run's.
                        fingerprint=trained["data_fingerprint"] or prepared.data.fingerprint,
                        importance_weights=importance,
                    )
                result = add_evaluations(result, directory, found)
                directory.write_result(result)
                _write_details(directory, request, prepared.data.classes, found)
        _say_spread(path, found)
    finally:
        if rank() == 0:
            directory.release()
    return broadcast_object(result)


def _loaded(network: nn.Module, path: Path) -> dict[str, Any]:
    """The checkpoint at ``path``, its weights in ``network``; of a final one all that a result says
    of the training.

    Raises:
        RunError: it is not of this network, or lacks entries.
    """
    state = checkpoint.load(path)
    try:
        if path.name == FINAL:
            for key in ("training", "provenance", "data_fingerprint"):
                if not isinstance(state[key], dict):
                    raise TypeError(f"{key} is of type {type(state[key]).__name__}")
            state |= _final_place(state["training"])
        if not isinstance(state["config"], dict):
            raise TypeError("config is no mapping")
        int(state["epoch"]), int(state["step"])
        network.load_state_dict(state["model"])
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{path} is not what this run trained: {reason.splitlines()[0]}; restore it, or remove "
            f"it and {RESULT} and start the run again"
        ) from error
    return state


def _final_place(training: dict[str, Any]) -> dict[str, int]:
    steps = training["steps"]  # none of weights that are imported
    return {"epoch": steps // training["steps_per_epoch"] if steps else 0, "step": steps}


def _weights_to_evaluate(
    network: nn.Module,
    directory: RunDirectory,
    own: dict[str, Any],
    name: str,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """Load the checkpoint that was request for; its file, epoch and step, as an evaluation says."""
    path = directory.path / name
    if name != FINAL:
        if not path.exists() and not Path(name).exists():
            raise RunError(f"checkpoint={name}: no such file, in {directory.path} or by that path")
        path = path if path.exists() else Path(name)
        trained = _loaded(network, path)
        if differences := config_differences(trained["config"], own):
            raise RunError(
                f"checkpoint={name} is of another experiment than {directory.path}: "
                f"{'; '.join(differences)}"
            )
    return {"file": name, "epoch": trained["epoch"], "step": trained["step"]}


def _require_fitting_data(
    path: Path, own: dict[str, Any], trained: dict[str, Any], prepared: Prepared
) -> None:
    """Whether the data are the run's, or validation images of another name in the run's classes.

    Raises:
        UserError: they are not.
    """
    if own.get("imported"):
        return  # nobody knows the images
    name, then = prepared.config.data.name, trained["data_fingerprint"]
    if name == own["data"]["name"]:
        try:
            require_same_data(path, then, prepared.data)
        except UserError as error:
            raise UserError(
                f"{error}. To evaluate other images of the same classes, name them: data.name="
            ) from error
        return
    # The batch average is of the training's own images.
    now = prepared.data.fingerprint
    require_same_data(path, {**then, "val": now["val"]}, prepared.data)
    classes, ours = prepared.data.classes, trained.get("classes")  # runs of before do not say
    if ours is not None and list(classes) != list(ours):
        raise UserError(
            f"data.name={name}: its {len(classes)} classes are not the {len(ours)} that {path} was "
            "trained with; expected the same names"
        )


def _details(prepared: Prepared, request: EvaluationRequest) -> Callable[[], Detail] | None:
    if request.per_class is None and request.save_logits is None:
        return None
    return partial(
        Detail,
        len(prepared.data.classes),
        len(prepared.data.val),
        eval_batch_size(prepared.config, prepared.device),
        prepared.device,
        keep_logits=request.save_logits is not None,
    )


def _write_details(
    directory: RunDirectory,
    request: EvaluationRequest,
    classes: Sequence[str],
    found: Sequence[Evaluated],
) -> None:
    details = {_name(made.record): made.detail for made in found if made.detail is not None}
    for name, content in (
        (request.per_class, lambda: classes_csv(classes, details).encode()),
        (request.save_logits, lambda: logits_npz(details)),
    ):
        if name is not None:
            print_rank0(f"{write_atomically(directory.path / name, content())}")


def _name(record: dict[str, Any]) -> str:
    """Of an evaluation in a file: ``moving_average``, ``batch_average_50000_seed0``."""
    made = record["calibration"]
    tail = f"_{made['samples_requested']}_seed{made['seed']}" if made else ""
    return f"{record['statistics']}{tail}"


def _say_spread(path: Path, found: Sequence[Evaluated]) -> None:
    """Of the batch averages with several draws, how far they lie apart."""
    draws: dict[Any, list[float]] = {}
    for made in found:
        if made.record["calibration"]:
            request = made.record["calibration"]["samples_requested"]
            draws.setdefault(request, []).append(made.record["top1"])
    for samples, tops in draws.items():
        if len(tops) > 1:
            print_rank0(
                f"{path}: batch average of {samples} samples, {len(tops)} draws: top-1 "
                f"{fmean(tops):.2f} +- {stdev(tops):.2f}, {min(tops):.2f} to {max(tops):.2f}"
            )


def _replaced(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in overrides.items():
        if isinstance(value, dict):
            merged[key] = _replaced(merged[key], value)
        elif value is not None:
            merged[key] = value
    return merged
