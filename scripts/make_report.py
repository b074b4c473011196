"""Make the report page: python scripts/make_report.py --runs runs --out DIR"""

from __future__ import annotations

from sn_imagenet.reporting.command import add_expected, made, runs_parser
from sn_imagenet.reporting.page import write_page


def main() -> None:
    description = "Make one HTML page of a folder of runs."
    parser = runs_parser(description, "folder for report.html")
    add_expected(parser)
    args = parser.parse_args()
    print(made(lambda: write_page(args.runs, args.out, args.paper, args.expected)).path)


if __name__ == "__main__":
    main()
