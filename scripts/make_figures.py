"""Make the figures from a folder of runs: python scripts/make_figures.py --runs runs --out DIR"""

from __future__ import annotations

from sn_imagenet.command_line import run_script


def main() -> int:
    # Imported here, where Ctrl-C prints no traceback.
    from sn_imagenet.reporting.command import chosen, runs_parser
    from sn_imagenet.reporting.figures.files import write_figures

    description = "Make the figures from a folder of runs."
    args = runs_parser(description, "folder for the figures", paper=False).parse_args()
    figures = write_figures(args.runs, args.out, **chosen(args))
    figures.show(args.brief)
    return 0 if figures.paths else 1


if __name__ == "__main__":
    run_script(main)
