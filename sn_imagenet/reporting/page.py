"""The report: one self-contained HTML page with verdicts, tables, figures and every run."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sn_imagenet.errors import UserError
from sn_imagenet.reporting.averages import averages_grid
from sn_imagenet.reporting.cells import evaluation_label, method_label, statistics_label
from sn_imagenet.reporting.claims_report import (
    JudgedClaim,
    claim_entry,
    effect_text,
    judge_claims,
    judge_expected,
    tested_text,
)
from sn_imagenet.reporting.curves import read_epochs
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.expected import read_expected
from sn_imagenet.reporting.figures.bands import draw_band, validation_under
from sn_imagenet.reporting.figures.files import draw_study
from sn_imagenet.reporting.figures.style import COLUMN, STYLE, light_grid
from sn_imagenet.reporting.paper import read_paper
from sn_imagenet.reporting.render import Grid
from sn_imagenet.reporting.study import RunCollection, Study, studies_of
from sn_imagenet.reporting.table2 import methods_grid, table2_grid
from sn_imagenet.reporting.variants import variants_grid
from sn_imagenet.reporting.verdict import RULES
from sn_imagenet.runs import FINISHED, Run, find_runs, flatten_config, write_text

# Config keys left out of the command that repeats a run.
_NOT_REPEATED = ("run_dir", "runs_dir")
# Captions of the figures by the stem of their file names, without the method.
_CAPTIONS = {
    "fig1": "top-1 by setting; a dot for each seed, 95 % intervals of the mean",
    "fig2": "learning curves; bands: one standard deviation over seeds",
    "fig8": "moving and batch average during training; bands as in Fig. 2",
    "weights": "importance weights during training, mean over the layers of a stage",
    "fig3": "importance weights of every layer",
    "fig4": "importance weights, mean over layers; a dot for each seed, their spread as a line",
}


@dataclass(frozen=True)
class ReportPage:
    """The page, and one line for each problem in the runs."""

    path: Path
    warnings: list[str]


def write_page(
    runs_dir: Path, out: Path, paper_file: Path, expected_file: Path | None = None
) -> ReportPage:
    """Write ``<out>/report.html`` from the runs below ``runs_dir``, with a study's own statements
    if ``expected_file`` is given. The page is self-contained and requests nothing. Text from
    result files is escaped.

    Raises:
        UserError: no runs, an input file cannot be read, or the page cannot be written.
    """
    paper = read_paper(paper_file)
    expected = read_expected(expected_file) if expected_file else None
    runs, warnings = find_runs(runs_dir)
    if not runs:
        raise UserError(f"{runs_dir}: holds no readable runs: {'; '.join(warnings)}")
    collection = RunCollection(runs, runs_dir, paper)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sn_imagenet.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = {path: i for i, path in enumerate(collection.folders(runs))}
    content = environment.get_template("report.html").render(
        expected=_claims(judge_expected(collection, expected) if expected else [], runs_dir),
        claims=_claims(judge_claims(collection), runs_dir),
        rules=RULES,
        captions=_CAPTIONS,
        matches_paper=any(paper.matches(r.cell.data, r.cell.model) for r in runs),
        paper=paper,
        studies=[_study(study, collection, warnings) for study in studies_of(collection)],
        runs=[_run(run, collection, warnings) for run in runs],
        numbers=numbers,
        warnings=list(dict.fromkeys(warnings)),
    )
    return ReportPage(
        write_text(out / "report.html", content, "--out"), list(dict.fromkeys(warnings))
    )


def _claims(claims: Sequence[JudgedClaim], root: Path) -> list[dict[str, Any]]:
    """The entries of ``claims.json`` with their effects in words."""
    entries = []
    for judged in claims:
        entry = claim_entry(judged, root)
        deciding = judged.judgment.deciding
        effect = effect_text(deciding) if deciding and not judged.judgment.counted else ""
        why = judged.judgment.why_not if entry["verdict"] == "not tested" else ""
        entries.append(
            {
                **entry,
                "effect_text": effect,
                "tested": tested_text(judged.judgment),
                "why": why,
                "effects": [effect_text(c) for c in judged.judgment.comparisons],
            }
        )
    return entries


def _study(study: Study, collection: RunCollection, warnings: list[str]) -> dict[str, Any]:
    grids: list[tuple[str, Grid]] = [("Table 2", table2_grid(study, collection))]
    tried = {run.cell.norm for run in study.runs} & {"in", "ln", "brn"}
    others = methods_grid(study, collection) if tried else None
    both = averages_grid(study, collection)
    grids += [("Other methods (Sec. 4.1)", others)] if others else []
    grids += [("Moving and batch average", both)] if both else []
    changes = variants_grid(study, collection)
    grids += [("Changes of the protocol", changes)] if changes else []
    with rc_context(STYLE):
        figures = [
            (named.name, svg(named.figure) if named.figure else "", named.why_not)
            for named in draw_study(study.runs, warnings)
        ]
    return {
        "title": study.title,
        "grids": grids,
        "figures": figures,
        "departures": gather_departures(study.runs),
    }


def svg(figure: Figure) -> str:
    """A figure as a data URI, so that the page needs no other file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _run(run: Run, collection: RunCollection, warnings: list[str]) -> dict[str, Any]:
    (folder,) = collection.folders([run])
    cell = run.cell
    return {
        "folder": folder,
        "title": f"{method_label(cell.norm)} {cell.setting}, seed {run.seed}",
        "data": cell.data,
        "model": cell.model,
        "norm": method_label(cell.norm),
        "setting": str(cell.setting),
        "seed": run.seed,
        "state": run.state,
        "detail": run.detail,
        "top1": run.top1(),
        "evaluations": [
            (evaluation_label(run, e), e, e is run.counted_evaluations.get(run.statistics))
            for e in run.evaluations
        ],
        "departures": run.departures,
        "provenance": _provenance(run),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        "command": repeat_command(run),
        "curve": _curve(run, warnings),
        "is_number": run.state == FINISHED,
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
    groups = ("norm", "batch", "data", "model", "protocol")
    chosen = [
        f"{group}={run.config[group]['name']}"
        for group in groups
        if isinstance(run.config.get(group), dict) and "name" in run.config[group]
    ]
    values = [
        f"++{key}={_hydra(value)}"
        for key, value in flatten_config(run.config).items()
        if key not in _NOT_REPEATED and not key.endswith(".name")
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
    try:
        epochs = read_epochs(run)
    except UserError as error:
        warnings.append(str(error))
        return ""
    if not epochs:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 2.1))
        axes = figure.subplots()
        light_grid(axes)
        for name in dict.fromkeys(name for epoch in epochs for name in epoch.validation):
            draw_band(
                axes, [epochs], validation_under(name), f"validation, {statistics_label(name)}"
            )
        draw_band(axes, [epochs], lambda e: e.train, "training", ls="--", lw=0.9)
        axes.set(xlabel="epoch", ylabel="top-1 (%)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="lower right", fontsize=6.5)
        figure.tight_layout()
        return svg(figure)
