"""Stylize images with a trained network: python scripts/stylize.py --run RUN --images DIR --out DIR

RUN is a run of task=stylization or its export. Images are upright by their EXIF orientation, and
written as PNG. One of 4096 x 4096 pixels takes about 3.5 GB.
"""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.command_line import run_script, script_parser


def main() -> int:
    parser = script_parser(__doc__)
    add, kinds = parser.add_argument, ["batch_average", "moving_average"]
    own = "default: the run's norm.test_statistics"
    add("--run", type=Path, required=True, metavar="RUN", help="a trained network")
    add("--images", type=Path, required=True, metavar="DIR", help="images in DIR and below")
    add("--out", type=Path, metavar="DIR", help="default: RUN/stylized, with all that Fig. 9 needs")
    add("--size", type=int, metavar="N", help="longer side in pixels; default: the image's own")
    add("--statistics", choices=kinds, help=f"which BN statistics to use; {own}")
    args = parser.parse_args()
    from sn_imagenet.tasks.stylization import stylize_folder  # imports torch

    options = (args.run, args.images, args.out, args.size, args.statistics)
    for path in stylize_folder(*options):
        print(path, flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
