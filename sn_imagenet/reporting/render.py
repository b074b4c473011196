"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "—": "---",
    "–": "--",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "γ": r"$\gamma$",
    "β": r"$\beta$",
    "ϵ": r"$\epsilon$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "Σ": r"$\Sigma$",
    "Ω": r"$\Omega$",
    "′": r"$'$",
    "≠": r"$\neq$",
    "ᵃ": r"\textsuperscript{a}",
    "ᵇ": r"\textsuperscript{b}",
    "ᶜ": r"\textsuperscript{c}",
    "ᵈ": r"\textsuperscript{d}",
}
FOOTNOTES = "ᵃᵇᶜᵈ"


@dataclass(frozen=True)
class Row:
    """``indent`` for a row that belongs to the one above, ``rule`` for a line above it."""

    label: str
    cells: tuple[str, ...]
    indent: bool = False
    rule: bool = False


@dataclass(frozen=True)
class Grid:
    """A table in plain text; the renderers escape it. Every row has one cell per column."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """A GitHub table with its columns padded, so that it reads well in a terminal too.
    ``align``: one of ``l``, ``r`` for each column, all ``l`` by default."""
    align = align or "l" * len(header)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in escaped)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(cells, widths, align, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    dashes = [
        "-" * (width - 1) + (":" if side == "r" else "-")
        for width, side in zip(widths, align, strict=True)
    ]
    return "\n".join([line(escaped[0]), line(dashes), *(line(row) for row in escaped[1:])])


def grid_markdown(grid: Grid) -> str:
    """``grid`` without its caption, its notes as a list."""
    rows = [[f"– {row.label}" if row.indent else row.label, *row.cells] for row in grid.rows]
    table = markdown_table(["", *grid.columns], rows, "l" + "r" * len(grid.columns))
    return "\n".join([table, *(["", *(f"- {note}" for note in grid.notes)] if grid.notes else [])])


def latex_escape(text: str) -> str:
    """``text`` with everything escaped that LaTeX would read as a command, and with a minus
    before a number instead of a hyphen."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return "".join(_LATEX.get(character, character) for character in text)


def grid_latex(grid: Grid) -> str:
    """``grid`` as a ``table`` float; needs the packages booktabs and graphicx."""
    lines = []
    for row in grid.rows:
        if row.rule:
            lines.append(r"\midrule")
        label = (r"\quad " if row.indent else "") + latex_escape(row.label)
        lines.append(" & ".join([label, *map(latex_escape, row.cells)]) + r" \\")
    # Nine settings with standard deviations are wider than a page.
    wide = len(grid.columns) > 5
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escape(grid.caption)}}}",
            r"\small",
            *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
            rf"\begin{{tabular}}{{l{'c' * len(grid.columns)}}}",
            r"\toprule",
            " & ".join(["", *map(latex_escape, grid.columns)]) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            *(rf"\par\footnotesize {latex_escape(note)}" for note in grid.notes),
            r"\end{table}",
        ]
    )


def plain(text: str) -> str:
    """``text`` for a terminal: control characters (escape sequences, line breaks) as ``\\x1b``."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def csv_text(rows: Sequence[dict[str, object]]) -> str:
    """``rows`` with a header line; None is an empty field. At least one row."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
