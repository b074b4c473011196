"""The report: one self-contained HTML page with verdicts, tables, figures and every run."""

from __future__ import annotations

import base64
import io
import json
import shlex
from pathlib import Path
from typing import Any

import jinja2
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from sn_imagenet.reporting.accuracy import averages_grid
from sn_imagenet.reporting.cells import (
    evaluation_label,
    method_label,
    score_heading,
    score_text,
    statistics_label,
)
from sn_imagenet.reporting.claims_report import (
    claim_entry,
    claims_on,
    effect_text,
    judge_claims,
    judge_expected,
    tested_text,
)
from sn_imagenet.reporting.command import Written
from sn_imagenet.reporting.curves import recorded_score, try_epochs, validates_by_step
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.expected import read_expected
from sn_imagenet.reporting.figures.files import draw_study
from sn_imagenet.reporting.figures.series import draw_curves, over_epochs, validation_under
from sn_imagenet.reporting.figures.style import COLUMN, STYLE
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.render import Grid
from sn_imagenet.reporting.study import RunCollection, Study, studies_of
from sn_imagenet.reporting.table2 import methods_grid, table2_grid
from sn_imagenet.reporting.variants import variants_grid
from sn_imagenet.reporting.verdict import RULES
from sn_imagenet.runs import Run, flatten_config, write_text
from sn_imagenet.runs.scores import TOP1

# Config keys left out of the command that repeats a run.
_NOT_REPEATED = ("run_dir", "runs_dir", "norm.head.")
# Captions of the figures by the stem of their file names, without the method.
_CAPTIONS = {
    "fig1": "{score} by setting; a dot for each seed, 95 % intervals of the mean",
    "fig2": "learning curves; bands: one standard deviation over seeds",
    "fig6a": "training losses; bands as in Fig. 2",
    "fig6b": "{score} of architectures that the controller samples; bands as in Fig. 2",
    "fig8": "moving and batch average during training; bands as in Fig. 2",
    "fig9": "content, style and outputs",
    "weights": "importance weights during training, mean over the layers of a stage",
    "fig3": "importance weights of every layer",
    "fig4": "importance weights, mean over layers; a dot for each seed, their spread as a line",
}


def write_page(
    runs_dir: Path, out: Path, paper_file: Path, expected_file: Path | None = None
) -> Written:
    """Write ``<out>/report.html`` from the runs below ``runs_dir``, with a study's own statements
    if ``expected_file`` is given. The page is self-contained and requests nothing. Text from
    result files is escaped.

    Raises:
        UserError: no runs, an input file cannot be read, or the page cannot be written.
    """
    paper = read_paper(paper_file)
    expected = read_expected(expected_file) if expected_file else None
    collection, warnings = RunCollection.read(runs_dir, paper)
    runs, studies = collection.runs, studies_of(collection)
    stated = judge_expected(collection, expected) if expected else []
    labels = {study.score.label for study in studies}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sn_imagenet.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        function.__name__: function
        for function in (effect_text, tested_text, method_label, score_text, repeat_command)
    }
    folders = collection.folders(runs)
    content = environment.get_template("report.html").render(
        expected=[(claim_entry(j, runs_dir), j.judgment) for j in stated],
        claims=[(claim_entry(j, runs_dir), j.judgment) for j in judge_claims(collection)],
        rules=RULES,
        without_claims=[s.title for s in studies if not claims_on(s)],
        matches_paper=any(study.matches_paper for study in studies),
        paper=paper,
        studies=[_study(study, warnings) for study in studies],
        score=labels.pop() if len(labels) == 1 else "score",
        runs=[_run(*pair, warnings) for pair in zip(runs, folders, strict=True)],
        numbers={folder: i for i, folder in enumerate(folders)},
        warnings=list(dict.fromkeys(warnings)),
    )
    path = write_text(out / "report.html", content, "--out")
    count = f" ({len(set(warnings))} warnings)" if warnings else ""
    brief = f"Report with figures, the paper's claims and every run: {path}{count}\n"
    brief += f"Verdicts in full (claims.md), tables with their notes, figures: {out}"
    return Written([path], warnings, brief=brief)


def _study(study: Study, warnings: list[str]) -> dict[str, Any]:
    tried = {run.cell.norm for run in study.runs} & {"in", "ln", "brn"}
    grids: dict[str, Grid | None] = {
        "Table 2" if study.is_classification else "Table": table2_grid(study),
        "Other methods (Sec. 4.1)": methods_grid(study) if tried else None,
        "Moving and batch average": averages_grid(study),
        "Changes of the protocol": variants_grid(study),
    }
    figures = []
    with rc_context(STYLE):
        for name, drawn, why_not in draw_study(study, warnings):
            if drawn:
                caption = _CAPTIONS[name.split("_")[0]].format(score=study.score.label)
                figures.append((f"{name}: {caption}", svg(drawn[0]), ""))
            else:
                figures.append((name, "", why_not))
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
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _run(run: Run, folder: str, warnings: list[str]) -> dict[str, Any]:
    return {
        "run": run,
        "folder": folder,
        "title": f"{method_label(run.cell.norm)} {run.cell.setting}, seed {run.seed}",
        "evaluations": [
            (evaluation_label(run, e), e, e is run.counted_evaluations.get(run.statistics))
            for e in run.evaluations
        ],
        "table": "Table 2" if run.score == TOP1 else "the table",
        "provenance": _provenance(run),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        "curve": _curve(run, warnings),
    }


def _provenance(run: Run) -> dict[str, str]:
    """The provenance of a run from ``result.json``: entry -> value as text."""
    try:
        result = json.loads((run.path / "result.json").read_text(encoding="utf-8"))
        entries = {**result.get("training", {}), **result["provenance"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # no result; the state of the run says so
    return {
        str(key): value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in entries.items()
        if value is not None
    }


def repeat_command(run: Run) -> str:
    """The command that repeats the experiment. It sets each value of the config and so does not
    depend on a version's presets. Empty without a config."""
    if not run.config:
        return ""
    flat = flatten_config(run.config)
    groups = ("norm", "batch", "data", "model", "protocol", "task", "norm.head")
    chosen = [f"{group}={flat[f'{group}.name']}" for group in groups if f"{group}.name" in flat]
    values = [
        f"++{key}={_hydra(value)}"
        for key, value in flat.items()
        if not key.startswith(_NOT_REPEATED) and not key.endswith(".name")
    ]
    return " ".join(["python train.py", *map(shlex.quote, [*chosen, *values])])


def _hydra(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    return json.dumps(value)


def _curve(run: Run, warnings: list[str]) -> str:
    epochs, why = try_epochs(run)
    warnings += [why] if why else []
    if not epochs:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 2.1))
        axes = figure.subplots()
        series = []
        for name in dict.fromkeys(name for epoch in epochs for name in epoch.validation):
            label = f"validation, {statistics_label(name)}"
            series += over_epochs([epochs], validation_under(name), label)
        series += over_epochs([epochs], lambda e: e.train, "training", ls="--", lw=0.9)
        draw_curves(axes, series)
        x = "step" if validates_by_step(run) else "epoch"
        axes.set(xlabel=x, ylabel=score_heading(recorded_score(run) or run.score))
        if series:
            rises = run.score.higher_is_better
            axes.legend(loc="lower right" if rises else "upper right", fontsize=6.5)
        figure.tight_layout()
        return svg(figure)
