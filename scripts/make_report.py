"""Make the report page: python scripts/make_report.py --runs runs --out DIR"""

from __future__ import annotations

from sn_imagenet.command_line import run_script
from sn_imagenet.reporting.command import add_expected, runs_parser
from sn_imagenet.reporting.page import write_page


def main() -> None:
    description = "Make one HTML page from a folder of runs."
    parser = runs_parser(description, "folder for report.html")
    add_expected(parser)
    args = parser.parse_args()
    write_page(args.runs, args.out, args.paper, args.expected).show(args.brief)


if __name__ == "__main__":
    run_script(main)
