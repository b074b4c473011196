"""Write run directories as training and evaluation do, for the tests of runs and reporting."""

from __future__ import annotations

import copy
import csv
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sn_imagenet.reporting.command import Written
from sn_imagenet.runs import Run
from sn_imagenet.runs.methods import BUILT_IN
from sn_imagenet.runs.scores import Score

REPOSITORY = Path(__file__).resolve().parents[1]
PAPER = REPOSITORY / "results" / "paper.yaml"
TEST_STATISTICS = {"bn": "moving_average", "sn": "batch_average"}


def result_of(run: Run) -> dict[str, Any]:
    """The content of a run's ``result.json``."""
    content: dict[str, Any] = json.loads((run.path / "result.json").read_text())
    return content


def markdown_of(written: Written) -> str:
    """The Markdown files that a script has written."""
    return "".join(path.read_text() for path in written.paths if path.suffix == ".md")


def table_rows(markdown: str, heading: str = "") -> list[list[str]]:
    """Cells of the first table after ``heading``, header first, without the line of dashes."""
    lines = markdown[markdown.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [table[0], *table[2:]]


def csv_rows(path: Path, *keys: str) -> dict[Any, dict[str, str]]:
    """The rows of a CSV file by the values of ``keys``: one value, or a tuple of several."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row[keys[0]] if len(keys) == 1 else tuple(row[k] for k in keys): row for row in rows}


def config(
    norm: str = "bn",
    batch: str = "8x2",
    seed: int = 0,
    data: str = "digits",
    model: str = "resnet50_mini",
) -> dict[str, Any]:
    gpus, samples = map(int, batch.split("x"))
    omega = ["in", "ln"] if samples == 1 else ["in", "ln", "bn"]
    statistics = TEST_STATISTICS.get(norm, "sample")
    return {
        "norm": {
            "name": norm,
            "target": f"sn_imagenet.norms.{BUILT_IN.get(norm, norm)}",
            "args": {"omega": omega} if norm == "sn" else {},
            "test_statistics": "sample" if norm == "sn" and samples == 1 else statistics,
        },
        "batch": {"gpus": gpus, "samples_per_gpu": samples, "name": batch},
        "data": {"name": data, "source": data, "root": None, "workers": 4},
        "model": {"name": model, "args": {}},
        "protocol": {"name": "paper", "base_lr": 0.1, "weight_decay": 1e-4},
        "trainer": {"epochs": 10, "device": "auto", "log_every": 50},
        "calibration": {"samples": 50000, "estimator": "mean_of_variances", "seed": 0},
        "seed": seed,
        "runs_dir": "runs",
        "run_dir": f"runs/{data}/{model}/{norm}/{batch}/seed{seed}",
        "evaluate": True,
    }


def layers(blocks: tuple[int, ...] = (3, 4, 6, 3), stem: str = "7x7") -> list[tuple[str, str, str]]:
    """(name, stage, conv) of ResNet's normalization layers in network order: 53 for ResNet-50."""
    positions = [("bn1", "res1", stem)]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            for i, conv in ((1, "1x1"), (2, "3x3"), (3, "1x1")):
                positions.append((f"{name}.bn{i}", f"res{stage + 1}", conv))
            if block == 0:
                positions.append((f"{name}.downsample.1", f"res{stage + 1}", "shortcut"))
    return positions


def weights(
    omega: list[str], seed: int = 0, blocks: tuple[int, ...] = (3, 4, 6, 3), stem: str = "7x7"
) -> list[dict[str, Any]]:
    generator = random.Random(f"{omega} {seed}")
    entries = []
    for name, stage, conv in layers(blocks, stem):
        entry: dict[str, Any] = {"name": name, "stage": stage, "place": conv}
        for kind in ("mean", "variance"):
            raw = {member: generator.uniform(0.1, 1.0) for member in omega}
            entry[kind] = {member: value / sum(raw.values()) for member, value in raw.items()}
        entries.append(entry)
    return entries


def result(
    run_config: dict[str, Any],
    top1: float = 90.0,
    other_top1: float | None = None,
    status: str = "finished",
    **entries: Any,
) -> dict[str, Any]:
    """A result.json of version 2. ``other_top1`` is the accuracy under the statistics that are not
    the config's ``norm.test_statistics``. ``entries`` replace top-level entries."""
    norm, batch = run_config["norm"], run_config["batch"]
    omega = norm["args"].get("omega")

    def evaluation(value: float, statistics: str) -> dict[str, Any]:
        calibration = {
            "estimator": run_config["calibration"]["estimator"],
            "samples_requested": run_config["calibration"]["samples"],
            "samples_used": 1396,
            "samples_per_replica": batch["samples_per_gpu"],
            "seed": 0,
        }
        return {
            "statistics": statistics,
            "top1": value,
            "top5": 99.5,
            "top1_correct": round(4 * value),
            "top5_correct": 398,
            "seen": 400,
            "loss": 0.3,
            "calibration": calibration if statistics == "batch_average" else None,
            "precision": run_config["trainer"].get("precision"),
            "checkpoint": {"file": "final.pt", "epoch": 10, "step": 870},
            "data": {"name": run_config["data"]["name"], "val": None},
            "by": "training",
            "at": "2026-01-31T12:00:00+0000",
            "provenance": None,
        }

    test_statistics = norm["test_statistics"]
    evaluations = [evaluation(top1, test_statistics)]
    if test_statistics != "sample":
        other = "moving_average" if test_statistics == "batch_average" else "batch_average"
        evaluations.append(evaluation(top1 if other_top1 is None else other_top1, other))
    finished = status == "finished"
    content = {
        "version": 2,
        "status": status,
        "error": "out of memory" if status == "failed" else None,
        "diverged": {"epoch": 3, "step": 120, "loss": "nan", "last_finite_loss": 2.31}
        if status == "diverged"
        else None,
        "cell": {
            "data": run_config["data"]["name"],
            "model": run_config["model"]["name"],
            "norm": norm["name"],
            "batch": batch["name"],
            "gpus": batch["gpus"],
            "samples_per_gpu": batch["samples_per_gpu"],
            "seed": run_config["seed"],
            "norm_args": norm["args"],
            "test_statistics": test_statistics,
        },
        "evaluations": evaluations if finished else [],
        "importance_weights": weights(omega, run_config["seed"]) if omega and finished else None,
        "training": {"epochs": 10, "steps": 870, "wall_time_s": 61.2, "world_size": 1},
        "departures": [{"item": "epochs", "paper": "100", "ours": "10"}],
        "provenance": {"git_revision": "0123456789abcdef", "git_dirty": False},
        "config": run_config,
    }
    return {**content, **entries}


def scored_result(
    run_config: dict[str, Any],
    score: Score,
    numbers: dict[str, Any],
    importance_weights: list[dict[str, Any]] | None = None,
    **cell: str,
) -> dict[str, Any]:
    """A result of a task with another score than top-1, and one evaluation, of ``numbers``.
    ``cell`` replaces entries of the cell."""
    outcome = result(run_config)
    images = {"top1", "top5", "top1_correct", "top5_correct", "seen", "loss"}
    evaluation = {k: v for k, v in outcome["evaluations"][0].items() if k not in images} | numbers
    outcome |= {"score": score.to_dict(), "evaluations": [evaluation]}
    return outcome | {"importance_weights": importance_weights, "cell": outcome["cell"] | cell}


def write_run(
    root: Path,
    run_config: dict[str, Any],
    outcome: dict[str, Any] | None = None,
    lock: dict[str, Any] | None = None,
    metrics: str | None = None,
    folder: str = "",
) -> Path:
    """Write a run directory below ``root``, at its default path unless ``folder`` names another."""
    default = Path(run_config["run_dir"]).relative_to("runs")
    directory = root / (folder or default)
    directory.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(copy.deepcopy(run_config)), directory / "config.yaml")
    if outcome is not None:
        (directory / "result.json").write_text(json.dumps(outcome))
    if lock is not None:
        (directory / "lock.json").write_text(json.dumps(lock))
    if metrics is not None:
        (directory / "metrics.jsonl").write_text(metrics)
    return directory


def finished_run(root: Path, top1: float, other_top1: float | None = None, **options: Any) -> Path:
    """Write a finished run; ``options`` are arguments of :func:`config`."""
    run_config = config(**options)
    return write_run(root, run_config, result(run_config, top1, other_top1))


def finished_seeds(root: Path, norm: str, batch: str, values: Sequence[float], **cell: Any) -> None:
    """A finished run for each of ``values``, which are top-1."""
    for seed, value in enumerate(values):
        finished_run(root, value, norm=norm, batch=batch, seed=seed, **cell)


def epoch_rows(
    run_config: dict[str, Any], epochs: int, calibrated: bool = False, final_top1: float = 90.0
) -> str:
    """The rows of ``metrics.jsonl`` after ``epochs`` epochs; top-1 approaches ``final_top1``."""
    norm, samples = run_config["norm"], run_config["batch"]["samples_per_gpu"]
    omega = norm["args"].get("omega")
    statistics = "sample" if norm["test_statistics"] == "sample" else "moving_average"
    generator = random.Random(f"{norm['name']} {samples} {run_config['seed']}")
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        top1 = final_top1 * (1 - 0.7**epoch)
        train = {"kind": "train", "epoch": epoch, "step": 10 * epoch, "steps": 10}
        rows.append({**train, "top1": top1 - 6 + generator.random()})
        row: dict[str, Any] = {
            "kind": "epoch",
            "epoch": epoch,
            "epochs": run_config["trainer"]["epochs"],
            "val": {"top1": top1 - generator.uniform(0, 8), "statistics": statistics},
        }
        if calibrated and norm["test_statistics"] != "sample":
            row["calibrated"] = {"top1": top1 - generator.uniform(0, 1)}
        if omega:
            row["importance_weights"] = {
                layer["name"]: {kind: layer[kind] for kind in ("mean", "variance")}
                for layer in weights(omega, run_config["seed"] + 100 * epoch, (1, 1, 1, 1))
            }
        rows.append(row)
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_sweep(
    root: Path, batches: tuple[str, ...], seeds: int = 3, partial: bool = False, epochs: int = 10
) -> None:
    """Write runs of BN, GN and SN; with ``partial`` some are missing, interrupted or diverged."""
    for column, batch in enumerate(batches):
        samples = int(batch.split("x")[1])
        for norm in ("bn", "gn", "sn"):
            for seed in range(seeds):
                top1 = {"bn": 92 - 30 / samples, "gn": 88.0, "sn": 91 - 6 / samples}[norm]
                top1 = round(4 * (top1 + (seed - 1) * 0.75)) / 4
                run_config = config(norm, batch, seed)
                rows = epoch_rows(run_config, epochs, True, top1)
                if not partial or (column + seed) % 3 == 0:
                    write_run(root, run_config, result(run_config, top1, top1 - 0.5), metrics=rows)
                elif (column + seed) % 3 == 1 and norm != "gn":
                    write_run(root, run_config, metrics=epoch_rows(run_config, 4, True, top1))
                elif norm == "bn":
                    write_run(root, run_config, result(run_config, status="diverged"), metrics=rows)


def first_evaluations(outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Statistics -> the first evaluation under them in a result, without its author and time."""
    first: dict[str, dict[str, Any]] = {}
    for evaluation in outcome["evaluations"]:
        record = {k: v for k, v in evaluation.items() if k not in ("by", "at", "provenance")}
        first.setdefault(evaluation["statistics"], record)
    return first
