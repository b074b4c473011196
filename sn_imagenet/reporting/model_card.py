"""The model card of an export: the network, its accuracy, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sn_imagenet.reporting.cells import (
    MISSING,
    method_label,
    score_heading,
    score_text,
    statistics_label,
)
from sn_imagenet.reporting.departures import gather_departures
from sn_imagenet.reporting.render import code_span, markdown_escape, markdown_table, round_half_up
from sn_imagenet.reporting.statistics import proportion_interval
from sn_imagenet.runs import Run
from sn_imagenet.runs.scores import TOP1

UNKNOWN_LICENSE = "unknown"


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
    cell = run.cell
    title = f"{architecture} with {method_label(cell.norm)}, {cell.setting}, {cell.data}"
    table = "Table 2 of Switchable Normalization (arXiv 1806.10779)"
    parts = [
        f"# {markdown_escape(title)}",
        f"One run of {f'task {code_span(cell.task)}' if cell.task else table}: {cell.setting} is "
        f"(GPUs, samples per GPU), each GPU with its own statistics; seed {run.seed}.",
        "## Accuracy",
        *_accuracy(run, statistics),
        "## Training",
        *_training(run),
        "## Loading",
        *(f"{introduction}\n\n```python\n{code}```" for introduction, code in loading),
        "## Files",
        markdown_table(["file", ""], [[name, content] for name, content in files.items()]),
        "## License",
        _license(license),
    ]
    return "\n\n".join([_front_matter(license, cell.task), *parts]) + "\n"


def _front_matter(license: str, task: str) -> str:
    # Hubs know names of their own for tasks.
    pipeline = ["pipeline_tag: image-classification"] if not task else []
    tags = f"tags: [{task or 'image-classification'}]"
    return "\n".join(["---", "library_name: timm", *pipeline, f"license: {license}", tags, "---"])


def _accuracy(run: Run, used: str) -> list[str]:
    if run.score != TOP1:
        scores = {s: e[run.score.key] for s, e in run.counted_evaluations.items()}
        cells = [[statistics_label(s), score_text(run.score, v)] for s, v in scores.items()]
        return [markdown_table(["statistics", score_heading(run.score)], cells, "lr")]
    rows = []
    for statistics, numbers in run.counted_evaluations.items():
        low, high = proportion_interval(numbers["top1_correct"], numbers["seen"])
        top5 = numbers.get("top5")
        rows.append(
            [
                statistics_label(statistics),
                str(round_half_up(numbers["top1"], 2)),
                f"[{round_half_up(low, 2)}, {round_half_up(high, 2)}]",
                MISSING if top5 is None else str(round_half_up(top5, 2)),
                f"{numbers['top1_correct']}/{numbers['seen']}",
                "the weights here" if statistics == used else "",
            ]
        )
    if not rows:
        return [f"Not evaluated: the run is {run.state}."]
    header = ["statistics", "top-1 %", "95 % interval", "top-5 %", "correct/seen", ""]
    return [
        markdown_table(header, rows, "lrlrrl"),
        "The interval (Wilson) is for another draw of as many validation images. Another seed "
        "differs by more than this interval. The statistics are those that BN uses in "
        f"evaluation; these weights hold: {statistics_label(used)}.",
    ]


def _training(run: Run) -> list[str]:
    protocol = str(run.config.get("protocol", {}).get("name", "unknown"))
    revision = run.git_revision[:12] or "unknown"
    dirty = ", with uncommitted changes" if run.git_dirty else ""
    trained = f"By sn-imagenet at git revision {code_span(revision)}{dirty}"
    parts = [f"{trained}; protocol {code_span(protocol)}."]
    departures = gather_departures([run])
    if not departures:
        return [*parts, "No departure from the paper's protocol was recorded."]
    rows = [[d.item, d.paper, d.ours] for d in departures]
    return [
        *parts,
        "It departs from the paper's protocol in:",
        markdown_table(["item", "paper", "ours"], rows),
    ]


def _license(license: str) -> str:
    if license == UNKNOWN_LICENSE:
        return (
            "The license of these weights is not specified. The code that loads them, sn-imagenet, "
            "is licensed under Apache-2.0."
        )
    return f"The weights: {license}. The code that loads them, sn-imagenet: apache-2.0."
