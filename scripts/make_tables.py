"""Make the tables: Table 1 from the modules, the others from a folder of runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sn_imagenet.command_line import run_script


def main() -> None:
    # Imported here, where Ctrl-C prints no traceback.
    from sn_imagenet.reporting.command import PAPER, chosen, names, runs_parser
    from sn_imagenet.reporting.curves import EPOCH_CHOICES
    from sn_imagenet.reporting.tables import TABLE_NAMES, write_tables

    parser = runs_parser(__doc__, "folder for the tables")
    only = f"tables among {', '.join(TABLE_NAMES)}; default the first two"
    parser.add_argument("--only", type=names, metavar="NAME,..", help=only)
    no_paper = "leave out the paper's numbers, its settings and notes, to print your own alone"
    parser.add_argument("--no-paper", action="store_true", help=no_paper)
    epochs = f"epoch whose accuracy counts: {', '.join(EPOCH_CHOICES)}"
    parser.add_argument("--epoch", default="final", help=epochs)
    args = parser.parse_args()

    def take_census() -> list[dict[str, Any]]:
        # Imported here so that tables of runs need no torch.
        from sn_imagenet.benchmark.census import census

        return [asdict(row) for row in census()]

    paper = None if args.no_paper else PAPER
    written = write_tables(args.runs, args.out, paper, args.only, take_census, **chosen(args))
    written.show(args.brief)


if __name__ == "__main__":
    run_script(main)
