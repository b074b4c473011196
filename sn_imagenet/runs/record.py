"""Reads a run directory: the table cell it belongs to, its state, progress and results.

Everything is read from its files, also while another process is writing them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sn_imagenet.config import CLASSIFICATION
from sn_imagenet.errors import UserError, as_text
from sn_imagenet.runs.directory import RunDirectory
from sn_imagenet.runs.evaluations import check_evaluations, counted_evaluations
from sn_imagenet.runs.files import CONFIG, RESULT
from sn_imagenet.runs.lock import is_held
from sn_imagenet.runs.methods import method_of
from sn_imagenet.runs.metrics import LastRows, last_rows, require_own_rows
from sn_imagenet.runs.reading import mapping, number
from sn_imagenet.runs.scores import TOP1, UNKNOWN, Score, read_score

FINISHED = "finished"
DIVERGED = "diverged"
FAILED = "failed"
RUNNING = "running"
INTERRUPTED = "interrupted"
UNREADABLE = "unreadable"
NOT_EVALUATED = "not evaluated"  # trained or imported, but the cell's evaluation is missing
STATES = (FINISHED, NOT_EVALUATED, RUNNING, INTERRUPTED, DIVERGED, FAILED, UNREADABLE)
# Raised when a file lacks an entry or an entry has the wrong type.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
# Older wording of departures -> the wording of sn_imagenet.evaluation.departures.
_DEPARTURE_WORDING = (
    (r"^normali.er arguments$", "normalization arguments"),
    (r"^normali.er$", "normalization layer"),
    (r" renormalisation$", " renormalization"),
    (r"^not told$", "not stated"),
    (r"^as of the rest$", "as for all parameters"),
)


@dataclass(frozen=True, order=True)
class Setting:
    """A setting: (number of GPUs, samples per GPU). Each column of Table 2 is one setting."""

    gpus: int
    samples_per_gpu: int

    def __str__(self) -> str:
        return f"({self.gpus},{self.samples_per_gpu})"

    @property
    def name(self) -> str:
        """The form used on the command line, such as ``8x32``."""
        return f"{self.gpus}x{self.samples_per_gpu}"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """The inverse of :attr:`name`.

        Raises:
            UserError: ``text`` is not two integers of at least 1 separated by ``x``.
        """
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip())
        if not match:
            raise UserError(f"setting '{text}': expected GPUs x samples per GPU, such as 8x32")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Cell:
    """A cell of a results table. Its runs should differ only in the seed.

    ``norm``: the method name that :func:`~sn_imagenet.runs.methods.method_of` returns, with the
    method of the heads if that is another: ``frozen_bn+sn``. ``row``: what else a task tells apart.
    ``task``: its name, empty for classification. ``label``: the method's name in tables, if its
    config gives one.
    """

    data: str
    model: str
    norm: str
    setting: Setting
    row: str = ""
    task: str = ""
    label: str = field(default="", compare=False)


@dataclass(frozen=True)
class LayerWeights:
    """The importance weights of one SN layer, Eq. (4).

    ``mean`` and ``variance`` map each member of Omega (in, ln, bn, gn) to its softmax weight; the
    weights of each sum to 1. ``stage``: res1 (stem) to res5. ``conv``: the convolution before the
    layer, ``1x1``, ``3x3``, ``7x7`` or ``shortcut``.
    """

    name: str
    stage: str
    conv: str
    mean: dict[str, float]
    variance: dict[str, float]


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory.

    ``state`` is one of :data:`STATES`. ``detail``: the error, the cause of divergence, or the
    epochs done; may be empty. ``evaluations`` lists all evaluations of the run, oldest first: their
    statistics (``batch_average``, ``moving_average`` or ``sample``), numbers, and how they were
    made. ``score`` is the task's. ``statistics`` names the statistics that Table 2
    reports for the run's cell.
    """

    path: Path
    cell: Cell
    seed: int
    state: str
    statistics: str = ""
    detail: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    evaluations: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)  # with the entries of training
    weights: tuple[LayerWeights, ...] = ()
    departures: tuple[tuple[str, str, str], ...] = ()  # (item, paper, ours)
    score: Score = TOP1
    rows: LastRows | None = None  # the last metrics of a run without a result

    @property
    def data_fingerprint(self) -> dict[str, Any]:
        return mapping(self.provenance.get("data_fingerprint"))

    @property
    def git_revision(self) -> str:
        return str(self.provenance.get("git_revision") or "")

    @property
    def git_dirty(self) -> bool:
        return bool(self.provenance.get("git_dirty"))

    @cached_property
    def counted_evaluations(self) -> dict[str, dict[str, Any]]:
        """Statistics -> the evaluation that tables report; see
        :func:`~sn_imagenet.runs.evaluations.counted_evaluations`.
        """
        return counted_evaluations(self.evaluations, self.config, self.data_fingerprint)

    def score_value(self, statistics: str | None = None) -> float | None:
        """The score for ``statistics`` (default: the tables'); None unless evaluated."""
        evaluation = self.counted_evaluations.get(statistics or self.statistics)
        trained = self.state in (FINISHED, NOT_EVALUATED)
        value = evaluation[self.score.key] if trained and evaluation else None
        return None if value is None else float(value)


class FoundRuns(NamedTuple):
    """The runs in or below a folder, and one warning for each that could not be read."""

    runs: list[Run]
    warnings: list[str]


def find_runs(root: Path, compare_configs: bool = False) -> FoundRuns:
    """Find each run in or below ``root``: a directory with ``config.yaml`` or ``result.json``.
    ``compare_configs``: see :func:`read_run`.

    Hidden directories are skipped, because Hydra keeps its own ``config.yaml`` in ``.hydra``. A
    run that cannot be read adds a warning instead of ending the search. If its config or path names
    its cell, it is also listed, in state ``unreadable``.

    Raises:
        UserError: ``root`` is not a folder or holds no runs.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of runs")
    runs: list[Run] = []
    warnings: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if not {CONFIG, RESULT} & set(files):
            continue
        try:
            run = read_run(Path(folder), compare_configs)
        except UserError as error:
            warnings.append(str(error))
            continue
        runs.append(run)
        if run.state == UNREADABLE:
            warnings.append(run.detail)
    if not runs and not warnings:
        raise UserError(f"{root}: holds no runs (no config.yaml or result.json in it or below)")
    return FoundRuns(runs, warnings)


def read_run(path: Path, compare_configs: bool = False) -> Run:
    """Read one run directory, finished or not. ``compare_configs``: a result with another config
    than ``config.yaml`` is that of another run, and this run is unreadable. Progress displays do
    without, because parsing YAML takes time.

    Raises:
        UserError: it cannot be read, and neither its config nor its path names its cell.
    """
    directory = RunDirectory(path)
    problem = ""
    try:
        result = directory.read_result()
        if result is not None:
            run = run_from_result(result, path)
            if compare_configs:
                _require_own_result(directory, run)
            return run
    except UserError as error:
        problem = str(error)
    try:
        run = _run_without_result(directory)
    except UserError as error:
        problem = problem or str(error)
        run = _run_from_path(path, problem)
    if run.state == INTERRUPTED and not problem and directory.result.is_file():
        return read_run(path)  # it finished after read_result() found no result
    if problem:
        return replace(run, state=UNREADABLE, detail=problem)
    return run


def _require_own_result(directory: RunDirectory, run: Run) -> None:
    try:
        config = directory.read_config()
    except UserError:  # missing or damaged, which says nothing of the result
        return
    directory.require_own(directory.result, run.config, config)


def run_from_result(result: dict[str, Any], path: Path) -> Run:
    """Parse ``result``, the version-2 ``result.json`` of the run directory ``path``.

    Raises:
        UserError: an entry is missing or malformed; the message names ``path``.
    """
    try:
        cell, state = result["cell"], result["status"]
        if state not in (FINISHED, DIVERGED, FAILED):
            raise ValueError(f"unknown status '{state}'")
        score = read_score(result.get("score"))
        provenance = {**mapping(result.get("training")), **mapping(result.get("provenance"))}
        mapping(provenance.get("data_fingerprint"))
        config = _checked_config(result.get("config"))
        run = Run(
            path=path,
            cell=_cell(cell, cell, config),
            seed=int(cell["seed"]),
            state=state,
            statistics=str(cell["test_statistics"]),
            detail=_state_detail(result),
            config=config,
            evaluations=check_evaluations(result.get("evaluations"), score),
            score=score,
            provenance=provenance,
            weights=tuple(_layer_weights(w) for w in result.get("importance_weights") or ()),
            departures=tuple(_departure(d) for d in result.get("departures") or ()),
        )
        if state == FINISHED and run.statistics not in run.counted_evaluations:
            return replace(run, state=NOT_EVALUATED)
        return run
    except _MALFORMED as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path / RESULT}: malformed result: {reason}") from error


def _cell(names: dict[str, Any], batch: dict[str, Any], config: dict[str, Any]) -> Cell:
    return Cell(
        data=str(names["data"]),
        model=str(names["model"]),
        norm=_method_name(str(names["norm"]), config),
        setting=Setting(int(batch["gpus"]), int(batch["samples_per_gpu"])),
        row=str(names.get("row") or ""),
        task=_task_name(config),
        label=_label(config),
    )


def _departure(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """(item, paper, ours) of a departure, in the current wording."""
    item, paper = str(entry["item"]), str(entry["paper"])
    for pattern, wording in _DEPARTURE_WORDING:
        item, paper = re.sub(pattern, wording, item), re.sub(pattern, wording, paper)
    return item, paper, str(entry["ours"])


def _checked_config(config: Any) -> dict[str, Any]:
    for section in ("trainer", "data", "calibration"):
        mapping(mapping(config).get(section))
    return mapping(config)


def _method_name(name: str, config: dict[str, Any]) -> str:
    """The method of a run; ``name`` is that of the backbone, perhaps with the head's."""
    norm = mapping(config.get("norm"))
    head = mapping(norm.get("head"))
    if not head:
        return method_of(name, norm.get("target"))
    name = name.removesuffix(f"+{head['name']}")
    parts = [(name, norm.get("target")), (str(head["name"]), head.get("target"))]
    return "+".join(method_of(*part) for part in parts)


def _task_name(config: dict[str, Any]) -> str:
    name = str(mapping(config.get("task")).get("name") or "")
    return "" if name == CLASSIFICATION["name"] else name


def _label(config: dict[str, Any]) -> str:
    norm = mapping(config.get("norm"))
    parts = [part for part in (norm, mapping(norm.get("head"))) if part]
    given = any(part.get("label") for part in parts)
    return "+".join(str(part.get("label") or part["name"]) for part in parts) if given else ""


def _layer_weights(entry: Mapping[str, Any]) -> LayerWeights:
    mean = {str(k): float(number(v)) for k, v in entry["mean"].items()}
    variance = {str(k): float(number(v)) for k, v in entry["variance"].items()}
    if not mean or mean.keys() != variance.keys():
        raise ValueError(f"{entry['name']}: weights of means {[*mean]}, of variances {[*variance]}")
    return LayerWeights(
        str(entry["name"]), str(entry["stage"]), str(entry["place"]), mean, variance
    )


def _state_detail(result: dict[str, Any]) -> str:
    if result["status"] == FAILED:
        lines = str(result.get("error") or "").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no error recorded")
    if result["status"] == DIVERGED:
        divergence = mapping(result.get("diverged"))
        cause = divergence.get("cause") or f"loss {divergence.get('loss')}"
        return f"{cause} at epoch {divergence.get('epoch')}, step {divergence.get('step')}"
    return ""


def _run_without_result(directory: RunDirectory) -> Run:
    config = directory.read_config()
    is_running = is_held(directory.lock)
    try:
        require_own_rows(directory, config)
        rows = last_rows(directory.metrics)
    except UserError:
        if not is_running:
            raise
        rows = LastRows()  # report the run as running, not its metrics as damaged
    idle_state = NOT_EVALUATED if config.get("imported") else INTERRUPTED
    try:
        names = {section: config[section]["name"] for section in ("data", "model", "norm")}
        names["row"] = mapping(config.get("task")).get("row")
        return Run(
            path=directory.path,
            cell=_cell(names, config["batch"], config),
            seed=int(config["seed"]),
            state=RUNNING if is_running else idle_state,
            statistics=str(config["norm"].get("test_statistics", "")),
            detail=_completed_epochs(rows.epoch, config),
            config=_checked_config(config),
            score=UNKNOWN if _task_name(config) else TOP1,
            rows=rows,
        )
    except _MALFORMED as error:
        raise UserError(f"{directory.config}: not the config of a run: {error!r}") from error


def _run_from_path(directory: Path, problem: str) -> Run:
    parts = [as_text(part) for part in directory.absolute().parts[-5:]]
    seed = re.fullmatch(r"seed(\d+)", parts[-1]) if parts else None
    if len(parts) < 5 or not seed:
        raise UserError(problem)
    data, model, norm, setting = parts[:4]
    data, _, task = data.partition("+")
    try:
        cell = Cell(data, model, norm, Setting.parse(setting), task=task)
    except UserError:
        raise UserError(problem) from None
    return Run(directory, cell, int(seed[1]), UNREADABLE, detail=problem)


def _completed_epochs(epoch: dict[str, Any] | None, config: dict[str, Any]) -> str:
    """Completed and total epochs, such as ``3/10``."""
    if epoch is not None and {"epoch", "epochs"} <= epoch.keys():
        return f"{epoch['epoch']}/{epoch['epochs']}"
    epochs = config["trainer"]["epochs"]
    return f"0/{epochs}" if epochs is not None else "0 epochs"


@dataclass(frozen=True)
class Progress:
    """How far a run has come: ``epoch`` of ``epochs`` are complete, or ``step`` of ``steps`` if the
    length of the training is counted in steps.

    ``value`` is the latest value of ``score``. ``eta_s`` is the training time left in seconds at
    the last measured ``images_per_s``. None is a value that is not known (yet); an
    unknown ``epoch`` may also be 0.
    """

    state: str
    epoch: int | None = None
    epochs: int | None = None
    value: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    detail: str = ""
    score: Score = TOP1
    step: int | None = None
    steps: int | None = None

    @property
    def done(self) -> str:
        """``3/10`` epochs, ``200/4000 steps``, or ``-``."""
        if self.epochs:
            return f"{self.epoch}/{self.epochs}"
        return f"{self.step}/{self.steps} steps" if self.steps else "-"


def read_progress(path: Path) -> Progress | None:
    """The progress of the run in the directory ``path``; None if no run was started there."""
    directory = RunDirectory(path)
    if not directory.config.is_file() and not directory.result.is_file():
        # A run locks its directory before it writes the config.
        return Progress(state=RUNNING) if is_held(directory.lock) else None
    try:
        return progress_of(read_run(path))
    except UserError as error:
        return Progress(state=UNREADABLE, detail=str(error))


def progress_of(run: Run) -> Progress:
    """The progress of a run that :func:`read_run` has read."""
    problem = ""
    try:
        rows = last_rows(RunDirectory(run.path).metrics) if run.rows is None else run.rows
    except UserError as error:
        rows = LastRows()
        problem = str(error)  # the result itself is still valid
    trainer = mapping(run.config.get("trainer"))
    score, value = run.score, run.score_value()
    validations = [row for row in (rows.validation, rows.epoch) if row and row.get("val")]
    if value is None and validations and run.state != DIVERGED:
        newest = max(validations, key=lambda row: row.get("step", 0))
        score = read_score(newest.get("score"))
        key = "calibrated" if run.statistics == "batch_average" else "val"
        value = mapping(newest.get(key) or newest.get("val")).get(score.key)
    return Progress(
        state=run.state,
        epoch=rows.epoch.get("epoch") if rows.epoch else 0,
        epochs=trainer.get("epochs"),
        value=value,
        images_per_s=rows.train.get("images_per_s") if rows.train else None,
        eta_s=_eta(run, rows.train, rows.epoch) if run.state == RUNNING else None,
        detail=run.detail if run.state in (DIVERGED, FAILED, UNREADABLE) else problem,
        score=score,
        step=rows.train.get("step") if rows.train else 0,
        steps=trainer.get("max_steps"),
    )


def _eta(run: Run, train: dict[str, Any] | None, epoch: dict[str, Any] | None) -> float | None:
    """Seconds of training left; None in the first epoch (steps per epoch are not known yet)."""
    try:
        trainer = run.config["trainer"]
        epochs, max_steps = trainer["epochs"], trainer.get("max_steps")
        if train is None or not train["images_per_s"] or (epochs and epoch is None):
            return None
        total, done = max_steps, train["step"]
        if epochs and epoch is not None:
            total = epoch["step"] / epoch["epoch"] * epochs
            total = min(total, max_steps or total)
            done = max(done, epoch["step"])
        steps_left = total - done
        setting = run.cell.setting
        seconds = steps_left * setting.gpus * setting.samples_per_gpu / train["images_per_s"]
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except (KeyError, TypeError, ArithmeticError):
        return None  # another version wrote the rows
