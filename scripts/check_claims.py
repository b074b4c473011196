"""Judge the paper's claims by runs: python scripts/check_claims.py --runs runs --out DIR"""

from __future__ import annotations

from sn_imagenet.reporting.claims_report import write_claims
from sn_imagenet.reporting.command import add_expected, made, runs_parser


def main() -> None:
    description = "Judge the paper's twelve claims by the runs."
    parser = runs_parser(description, "folder for claims.json")
    add_expected(parser)
    args = parser.parse_args()
    written = made(lambda: write_claims(args.runs, args.out, args.paper, args.expected))
    print(written.text)
    print(written.path)


if __name__ == "__main__":
    main()
