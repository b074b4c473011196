"""Import the authors' weights: python scripts/import_official.py FILE.pth --out RUN batch=8x32

FILE.pth is a checkpoint of the authors' repository (ResNets with Switchable Normalization). RUN
becomes a run directory for evaluate.py run=RUN. Tables mark it as imported. OPTION is an option of
train.py, such as batch= for the setting in which the file was trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sn_imagenet.benchmark.command import compose_config
from sn_imagenet.command_line import run_script, script_parser
from sn_imagenet.tasks.import_weights import import_official


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.pth")
    parser.add_argument("--out", required=True, metavar="RUN", help="a new run directory")
    parser.add_argument("overrides", nargs="*", metavar="OPTION", help="option of train.py")
    args = parser.parse_intermixed_args()
    config = compose_config(["norm=sn", "protocol=official_code", *args.overrides])
    print(import_official(args.file, replace(config, run_dir=args.out)))


if __name__ == "__main__":
    run_script(main)
