"""Judge the paper's claims by runs: python scripts/check_claims.py --runs runs --out DIR"""

from __future__ import annotations

from sn_imagenet.reporting.claims_report import write_claims
from sn_imagenet.reporting.command import made, runs_parser


def main() -> None:
    description = "Judge the paper's twelve claims by the runs."
    args = runs_parser(description, "folder for claims.json").parse_args()
    written = made(lambda: write_claims(args.runs, args.out, args.paper))
    print(written.text)
    print(written.path)


if __name__ == "__main__":
    main()
