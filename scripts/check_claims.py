"""Judge the paper's claims on runs: python scripts/check_claims.py --runs runs --out DIR"""

from __future__ import annotations

from sn_imagenet.command_line import run_script


def main() -> None:
    # Imported here, where Ctrl-C prints no traceback.
    from sn_imagenet.reporting.claims_report import write_claims
    from sn_imagenet.reporting.command import PAPER, chosen, runs_parser

    description = "Judge the paper's claims, and your own methods, on the runs."
    out = "folder for claims.json and claims.md"
    args = runs_parser(description, out, expected=True).parse_args()
    write_claims(args.runs, args.out, PAPER, args.expected, **chosen(args)).show(args.brief)


if __name__ == "__main__":
    run_script(main)
