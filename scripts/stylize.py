"""Stylize images with a trained network: python scripts/stylize.py --run RUN --images DIR --out DIR

RUN is the directory of a run of task=stylization, or an export of one. Images are read from DIR and
below, upright by their EXIF orientation, and written as PNG. One of 4096 x 4096 pixels takes less
than 4 GB.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sn_imagenet.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="a trained network")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="content images")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="output folder; default: stylized in the run, with content and style, for Fig. 9",
    )
    parser.add_argument("--size", type=int, metavar="N", help="longer side in pixels; default: own")
    parser.add_argument(
        "--statistics",
        choices=["batch_average", "moving_average"],
        help="of BN in evaluation; default: the run's norm.test_statistics",
    )
    args = parser.parse_args()
    try:
        from sn_imagenet.tasks.stylization import stylize_folder  # imports torch

        options = (args.run, args.images, args.out, args.size, args.statistics)
        for path in stylize_folder(*options):
            print(path, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
