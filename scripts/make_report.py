"""Make the report page: python scripts/make_report.py --runs runs --out DIR"""

from __future__ import annotations

from sn_imagenet.command_line import run_script


def main() -> None:
    # Imported here, where Ctrl-C prints no traceback.
    from sn_imagenet.reporting.command import PAPER, chosen, runs_parser
    from sn_imagenet.reporting.page import write_page

    description = "Make one HTML page from a folder of runs."
    parser = runs_parser(description, "folder for report.html", expected=True)
    sweep = "the sweep that trained the runs, for the commands that repeat them"
    parser.add_argument("--sweep", metavar="NAME", help=sweep)
    args = parser.parse_args()
    page = write_page(args.runs, args.out, PAPER, args.expected, args.sweep, **chosen(args))
    page.show(args.brief)


if __name__ == "__main__":
    run_script(main)
