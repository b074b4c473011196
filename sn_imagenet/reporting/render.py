"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from statistics import median

from sn_imagenet.runs.files import csv_table

FOOTNOTES = "ᵃᵇᶜᵈᵉᶠᵍʰ"
# fmt: off
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "γ": r"$\gamma$", "β": r"$\beta$", "ϵ": r"$\epsilon$", "μ": r"$\mu$", "σ": r"$\sigma$",
    "ρ": r"$\rho$", "τ": r"$\tau$",
    "Σ": r"$\Sigma$", "Ω": r"$\Omega$", "′": r"$'$", "≠": r"$\neq$", "≥": r"$\geq$", "≤": r"$\leq$",
    "—": "---", "–": "--", "±": r"$\pm$", "−": "$-$", "×": r"$\times$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}",
    **{mark: rf"\textsuperscript{{{a}}}" for mark, a in zip(FOOTNOTES, "abcdefgh", strict=True)},
    # A row that begins with a bracket would be an argument of the line break before it.
    "[": "{[}", "]": "{]}",
}
# fmt: on
Columns = dict[str, object]  # of a row of a CSV file


@dataclass(frozen=True)
class Row:
    """``indent``: the row belongs to the one above. ``rule``: a line above it. ``bold``: columns in
    bold. ``runs``: for each cell the folders of its runs, for links. ``csv``: its rows of the CSV.
    """

    label: str
    cells: Sequence[str]
    indent: bool = False
    rule: bool = False
    bold: Sequence[int] = ()
    runs: Sequence[Sequence[str]] = ()
    csv: Sequence[Columns] = ()


@dataclass(frozen=True)
class Grid:
    """A table in plain text, which the renderers escape. Every row has one cell per column."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Document:
    """One table of the paper: its grids in Markdown with all that belongs to them, one text for
    each study; the grids themselves; and one line for each problem."""

    title: str
    sections: Sequence[str]
    grids: Sequence[Sequence[Grid]]
    warnings: Sequence[str] = ()

    @property
    def markdown(self) -> str:
        return "\n\n".join([f"# {self.title}", *self.sections]) + "\n"

    def text(self, notes: bool) -> str:
        """The first grid of each study, to print."""
        shown = [grids[0] for grids in self.grids if grids]
        parts = [
            f"{self.title}. {markdown_escape(grid.caption)}\n\n{grid_markdown(grid, notes)}"
            for grid in shown
        ]
        return "\n\n".join(parts) + "\n"

    @property
    def latex(self) -> str:
        """The first grid of each study, labeled ``tab:table2``, ``tab:table2-2``, ..."""
        name = re.sub(r"\W+", "-", self.title.replace("Table ", "table").lower()).strip("-")
        grids = [grids[0] for grids in self.grids if grids]
        labels = (f"{name}-{i}" if i > 1 else name for i in range(1, len(grids) + 1))
        head = f"% {self.title}. Needs \\usepackage{{booktabs,graphicx}}."
        return "\n\n".join([head, *map(grid_latex, grids, labels)]) + "\n"

    @property
    def csv(self) -> str:
        grids = [grid for grids in self.grids for grid in grids]
        rows = [columns for grid in grids for row in grid.rows for columns in row.csv]
        return csv_text(rows) if rows else ""


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "", *, escape: bool = True
) -> str:
    """A GitHub table with padded columns, readable in a terminal too. ``align``: ``l`` or ``r`` for
    each column, all ``l`` by default. Cells are plain text, or Markdown if ``escape`` is False."""
    align = align or "l" * len(header)
    escaped = [
        [markdown_escape(cell) if escape else cell for cell in row] for row in (header, *rows)
    ]
    widths = [max(3, *(len(row[i]) for row in escaped)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if alignment == "r" else cell.ljust(width)
            for cell, width, alignment in zip(cells, widths, align, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    dashes = [
        "-" * (width - 1) + (":" if alignment == "r" else "-")
        for width, alignment in zip(widths, align, strict=True)
    ]
    return "\n".join([line(escaped[0]), line(dashes), *(line(row) for row in escaped[1:])])


def grid_markdown(grid: Grid, notes: bool = True) -> str:
    """``grid`` without its caption; its notes as a list."""
    rows = []
    for row in grid.rows:
        cells = [
            f"**{markdown_escape(cell)}**" if i in row.bold else markdown_escape(cell)
            for i, cell in enumerate(row.cells)
        ]
        rows.append([("– " if row.indent else "") + markdown_escape(row.label), *cells])
    header = ["", *map(markdown_escape, grid.columns)]
    table = markdown_table(header, rows, "l" + "r" * len(grid.columns), escape=False)
    items = markdown_list([markdown_escape(note) for note in grid.notes if notes])
    return f"{table}\n\n{items}" if items else table


def markdown_list(items: Sequence[str]) -> str:
    """A list of ``items``, which are Markdown."""
    return "\n".join(f"- {item}" for item in items)


def markdown_escape(text: str) -> str:
    """``text`` escaped so that GitHub's Markdown shows it literally within a line: no emphasis,
    code, link, HTML or new cell. Underscores inside a word need no escape."""
    text = re.sub(r"([\\`*|])", r"\\\1", plain(text))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    text = re.sub(r"\[(?=[^\[\]]*\][(\[:])", r"\\[", text)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    return text.replace("<", "&lt;")


def code_span(text: str) -> str:
    """``text`` as code within a line of Markdown."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " * bool(longest)
    return f"{fence}{space}{plain(text)}{space}{fence}"


def decimals(values: Iterable[float | None], unit: str) -> int:
    """Decimals to show ``values`` with: two in percent, else as many as give their median five
    significant digits, below 0 for large ones."""
    sizes = [abs(value) for value in values if value]
    return 2 if unit == "%" or not sizes else 4 - math.floor(math.log10(median(sizes)))


def round_half_up(value: float, digits: int) -> Decimal:
    """``value`` rounded half up as a decimal: 75.25 to 75.3, -0.03 to -0.0, with -2 ``digits`` 1250
    to 1.3E+3. Digits after the ninth are noise."""
    exact = Decimal(f"{value:.{max(9, digits)}f}") + 0  # + 0: no sign of nothing
    return exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def latex_escape(text: str) -> str:
    """``text`` with LaTeX's special characters escaped, and a minus instead of a hyphen before a
    number. Characters that LaTeX lacks are replaced by their code points."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", plain(text))
    return "".join(
        _LATEX.get(character) or (character if character.isascii() else f"U+{ord(character):04X}")
        for character in text
    )


def grid_latex(grid: Grid, name: str) -> str:
    """``grid`` as a ``table`` float with ``\\label{tab:name}``. Needs booktabs and graphicx."""
    lines = []
    for row in grid.rows:
        if row.rule:
            lines.append(r"\midrule")
        label = (r"\quad " if row.indent else "") + latex_escape(row.label)
        cells = [
            rf"\textbf{{{latex_escape(cell)}}}" if i in row.bold else latex_escape(cell)
            for i, cell in enumerate(row.cells)
        ]
        lines.append(" & ".join([label, *cells]) + r" \\")
    # Nine settings with standard deviations are wider than a page.
    wide = len(grid.columns) > 5
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escape(grid.caption)}}}\label{{tab:{name}}}",
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


def csv_text(rows: Sequence[Columns]) -> str:
    """``rows`` with a header line; None or a missing key is an empty field, numbers have six
    decimals. Text that a spreadsheet would run as a formula is prefixed with an apostrophe."""
    return csv_table([{key: _csv_field(value) for key, value in row.items()} for row in rows])


def _csv_field(value: object) -> object:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return round(value, 6) if isinstance(value, float) else value
