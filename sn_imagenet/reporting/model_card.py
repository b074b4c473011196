"""The model card of an export: the network, its accuracy, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sn_imagenet.reporting.cells import cell_label, interval_text, statistics_label
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.render import code_span, markdown_escape, markdown_table
from sn_imagenet.reporting.report import run_tables
from sn_imagenet.reporting.statistics import proportion_interval
from sn_imagenet.runs import Run
from sn_imagenet.runs.scores import TOP1

UNKNOWN_LICENSE = "unknown"
# What hubs call the tasks.
_KINDS = {
    "": "image-classification",
    "stylization": "image-to-image",
    "detection": "object-detection",
}


def model_card(
    run: Run,
    *,
    architecture: str,
    statistics: str,
    loading: Sequence[tuple[str, str]],
    files: Mapping[str, str],
    license: str = UNKNOWN_LICENSE,
) -> str:
    """Markdown with the front matter that model hubs read: accuracy with its uncertainty, protocol,
    departures, statistics, loading, license.

    Args:
        statistics: the evaluation statistics stored in the weights.
        loading: (introduction, Python code) for each way to load the weights.
        files: file name -> description.
        license: the weights' license, as hubs abbreviate it.
    """
    cell, revision = run.cell, run.git_revision[:12] or "unknown"
    dirty = ", with uncommitted changes" if run.git_dirty else ""
    protocol = str(run.config.get("protocol", {}).get("name", "unknown"))
    departures = [[d.item, d.paper, d.ours] for d in gather_departures([run])]
    title = f"{architecture} with {cell_label(cell)}, {cell.setting}, {cell.data}"
    table = "Table 2 of Switchable Normalization (arXiv 1806.10779)"
    kind = _KINDS.get(cell.task, cell.task)
    pipeline = f"pipeline_tag: {kind}\n" if cell.task in _KINDS else ""
    parts = [
        f"---\nlibrary_name: {'pytorch' if cell.task else 'timm'}\n{pipeline}"
        f"license: {license}\ntags: [{kind}]\n---",
        f"# {markdown_escape(title)}",
        f"One run of {f'task {code_span(cell.task)}' if cell.task else table}: {cell.setting} is "
        f"(GPUs, samples per GPU), each GPU with its own statistics; seed {run.seed}.",
        "## Score" if cell.task else "## Accuracy",
        *_accuracy(run, statistics),
        "## Training",
        f"By sn-imagenet at git revision {code_span(revision)}{dirty}; protocol "
        f"{code_span(protocol)}.",
        f"It departs from the paper's protocol in:\n\n"
        f"{markdown_table(['item', 'paper', 'ours'], departures)}"
        if departures
        else "No departure from the paper's protocol was recorded.",
        "## Loading",
        *(f"{introduction}\n\n```python\n{code}```" for introduction, code in loading),
        "## Files",
        markdown_table(["file", ""], list(map(list, files.items()))),
        "## License",
        f"The weights: {license}. The code that loads them, sn-imagenet: apache-2.0."
        if license != UNKNOWN_LICENSE
        else "The license of these weights is not specified. The code that loads them, "
        "sn-imagenet, is licensed under Apache-2.0.",
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(run: Run, used: str) -> list[str]:
    if not run.evaluations:
        return [f"Not evaluated: the run is {run.state}."]
    text = "The statistics are those that BN uses in evaluation; these weights hold: "
    text += f"{statistics_label(used)}."
    if run.score == TOP1 and (numbers := run.counted_evaluations.get(used)):
        interval = proportion_interval(numbers["top1_correct"], numbers["seen"])
        text += (
            f" The 95 % interval of their top-1 is {interval_text(interval, 2)} (Wilson), for "
            "another draw of as many validation images. Another seed differs by more than this."
        )
    return [run_tables([run]).strip(), text]
