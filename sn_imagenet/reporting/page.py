"""The report: one self-contained HTML page with verdicts, tables, figures and every run."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from sn_imagenet.config import CONFIGS, NON_EXPERIMENT_KEYS
from sn_imagenet.reporting.cells import (
    cell_label,
    evaluation_label,
    score_heading,
    score_text,
    statistics_label,
)
from sn_imagenet.reporting.claims_report import (
    claim_details,
    claim_notes,
    effect_text,
    judge_claims,
)
from sn_imagenet.reporting.command import Written
from sn_imagenet.reporting.curves import Epoch, recorded_score, try_epochs, validates_by_step
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.detection import TASK as DETECTION
from sn_imagenet.reporting.figures.files import draw_study, figure_stem
from sn_imagenet.reporting.figures.style import STYLE
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.render import Grid
from sn_imagenet.reporting.study import RunCollection, Study, studies_of
from sn_imagenet.reporting.table2 import averages_grid, table2_grid
from sn_imagenet.reporting.variants import variants
from sn_imagenet.reporting.verdict import RULES
from sn_imagenet.runs import Run, flatten_config, write_text
from sn_imagenet.runs.scores import TOP1

# Names and captions of the figures by the stem of their file names, without the method.
_CAPTIONS = {
    "fig1": "Fig. 1: {score} by setting; a dot for each seed, 95 % intervals of the mean",
    "fig2": "Fig. 2: learning curves; bands: one standard deviation over seeds",
    "fig5": "Fig. 5: {score} on the validation images during training; bands as in Fig. 2",
    "fig6a": "Fig. 6(a): training losses; bands as in Fig. 2",
    "fig6b": "Fig. 6(b): {score} of architectures that the controller samples; bands as in Fig. 2",
    "fig8": "Fig. 8: moving and batch average during training; bands as in Fig. 2",
    "fig9": "Fig. 9: content, style and outputs",
    "found": "True objects, and those that the detectors find",
    "parts": "Importance weights, mean over the layers of a part (Fig. 1(c)); as in Fig. 4",
    "weights": "Importance weights during training, mean over the layers of a stage",
    "fig3": "Fig. 3: importance weights of every layer",
    "fig4": "Fig. 4: importance weights, mean over layers; a dot for each seed, their spread as a "
    "line",
}
_WIDTH, _HEIGHT = 320, 120  # of a run's curve


def write_page(
    runs_dir: Path,
    out: Path,
    paper_file: Path,
    expected_file: Path | None = None,
    sweep: str | None = None,
    **options: Any,
) -> Written:
    """Write ``<out>/report.html`` from the runs below ``runs_dir``: the paper's verdicts, a study's
    regression checks if ``expected_file`` is given, tables, figures and every run. The page is
    self-contained and requests nothing. Text from result files is escaped.

    Args:
        sweep: the name in ``configs/sweep`` that trained the runs, for the commands that repeat
            them.
        options: see :meth:`.RunCollection.read`.

    Raises:
        UserError: no runs, an input file cannot be read, or the page cannot be written.
    """
    collection, warnings = RunCollection.read(runs_dir, read_paper(paper_file), **options)
    studies = studies_of(collection)
    runs = [run for study in studies for run in study.runs]
    folders = collection.folders(runs)
    labels = {study.score.label for study in studies}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sn_imagenet.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (effect_text, claim_details, cell_label, score_text)
    environment.globals |= {function.__name__: function for function in functions}
    content = environment.get_template("report.html").render(
        groups=judge_claims(collection, expected_file),
        rules=RULES,
        notes=claim_notes(collection),
        changes=[grid for grids in variants(collection).grids for grid in grids],
        studies=[_study(study, studies, out, warnings) for study in studies],
        score=labels.pop() if len(labels) == 1 else "score",
        runs=[describe_run(*pair, sweep, warnings) for pair in zip(runs, folders, strict=True)],
        same_study=len(studies) == 1,
        numbers={folder: i for i, folder in enumerate(folders)},
        by_cell={
            cell: [(r.seed, i) for i, r in enumerate(runs) if r.cell == cell]
            for cell in dict.fromkeys(run.cell for run in runs)
        },
        folder=dict(zip(runs, folders, strict=True)),
        warnings=dict.fromkeys(warnings),
    )
    path = write_text(out / "report.html", content, "--out")
    count = f" ({len(set(warnings))} warnings)" if warnings else ""
    brief = f"Report with figures, the paper's claims and every run: {path}{count}\n"
    brief += f"Verdicts in full (claims.md), tables with their notes, figures: {out}"
    return Written([path], warnings, brief=brief)


@rc_context(STYLE)
def _study(
    study: Study, studies: Sequence[Study], out: Path, warnings: list[str]
) -> dict[str, Any]:
    ran = replace(study, settings=[s for s in study.settings if any(
        study.cell(method, s).runs for method in study.methods
    )])  # fmt: skip
    grids: dict[str, Grid | None] = {
        "Table 2" if study.is_classification else "Table": table2_grid(ran),
        "Moving and batch average": averages_grid(ran),
    }
    figures = []
    for name, drawn, why_not in draw_study(study, warnings):
        stem, _, method = name.partition("_")
        caption = _CAPTIONS.get(stem, name).format(score=study.score.label)
        caption += f" ({method})" if method else ""
        image, file = svg(drawn[0]) if drawn else "", figure_stem(name, study, studies) + ".png"
        if name == "found" and not drawn and (out / file).exists():
            # Committed runs lack their many pictures, not the figure that was drawn from them.
            image = _data_uri("png", (out / file).read_bytes())
        figures.append((caption, image, why_not))
    return {
        "title": study.title,
        "grids": [(title, grid) for title, grid in grids.items() if grid],
        "figures": figures,
        "departures": gather_departures(study.runs),
    }


def svg(figure: Figure) -> str:
    """A figure as a data URI, so that the page needs no other file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri("svg+xml", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def describe_run(run: Run, folder: str, sweep: str | None, warnings: list[str]) -> dict[str, Any]:
    """What the page shows of a run. Adds a line to ``warnings`` if its metrics cannot be read."""
    epochs, why = try_epochs(run)
    warnings += [why] if why else []
    score = recorded_score(run) or run.score
    return {
        "run": run,
        "folder": folder,
        "title": f"{cell_label(run.cell)} {run.cell.setting}, seed {run.seed}",
        "evaluations": [
            (
                evaluation_label(run, e),
                {k: _text(v) for k, v in e.items() if v is not None and not isinstance(v, dict)},
                e is run.counted_evaluations.get(run.statistics),
            )
            for e in run.evaluations
        ],
        "table": "Table 2" if run.score == TOP1 else "the table",
        "provenance": {k: _text(v) for k, v in run.provenance.items() if v is not None},
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        "curve": curve(epochs, score_heading(score), "step" if validates_by_step(run) else "epoch"),
        "command": repeat_command(run, sweep),
    }


def _text(value: Any) -> str:
    """A value of a result file, numbers rounded to five digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def curve(epochs: Sequence[Epoch], heading: str, unit: str) -> dict[str, Any]:
    """The lines of a run's learning curve, as points of an SVG; empty without any."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch.validation)
    lines = {
        f"validation, {statistics_label(name)}": {
            e.number: e.validation[name] for e in epochs if name in e.validation
        }
        for name in names
    }
    lines["training"] = {e.number: e.train for e in epochs if e.train is not None}
    values = [value for line in lines.values() for value in line.values()]
    if not values:
        return {}
    low, high, last = min(values), max(values), epochs[-1].number
    x, y = _WIDTH / last, _HEIGHT / ((high - low) or 1.0)
    drawn = {
        name: " ".join(
            f"{x * number:.1f},{y * (high - value):.1f}" for number, value in line.items()
        )
        for name, line in lines.items()
        if line
    }
    caption = f"{heading} from {low:.5g} to {high:.5g} over {last} {unit}{'s' * (last > 1)}"
    return {"width": _WIDTH, "height": _HEIGHT, "lines": drawn, "caption": caption}


def repeat_command(run: Run, sweep: str | None = None) -> str:
    """The command that repeats a run, as one of ``sweep`` if that is given. It sets every value in
    which the run departs from what the names in it compose today; empty without a config."""
    if not (flat := flatten_config(run.config)):
        return ""
    groups = ("norm", "batch", "data", "model", "task", "norm.head", "protocol")
    defaults = (None, "classification", "paper")
    names = {g: name for g in groups if (name := flat.get(f"{g}.name")) not in defaults}
    if not (CONFIGS / "data" / f"{names['data']}.yaml").is_file():  # the data have their own name
        names |= {"data": flat.get("data.source"), "data.name": names["data"]}
    task = names.get("task")
    if task == DETECTION or (sweep and _composed((f"sweep={sweep}",)).get("task.name") != task):
        sweep = None  # it has pairs of methods, or it is another task's
    words = [f"sweep={sweep}"] * bool(sweep)
    words += [f"{group}={name}" for group, name in names.items()]
    composed = _composed(tuple(words))
    changed = [
        f"++{key}={_hydra(value)}"
        for key, value in flat.items()
        if key not in NON_EXPERIMENT_KEYS and key != "seed" and not key.endswith(".name")
        if not key.startswith("norm.head.") and composed.get(key, "") != value
    ]
    program = ["python", "train.py", *["-m"] * bool(sweep)]
    return shlex.join([*program, *words, f"seed={run.seed}", *changed])


@cache
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    """The config that command-line words compose, flattened; empty if they do not."""
    from hydra import compose, initialize_config_dir

    from sn_imagenet.config import from_hydra

    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return flatten_config(from_hydra(compose("config", overrides=[*words])).to_dict())
    except Exception:  # Hydra raises many kinds; the command then gives every value
        return {}


def _hydra(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    return json.dumps(value)
