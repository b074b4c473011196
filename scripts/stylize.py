"""Stylize images with a trained network: python scripts/stylize.py --run RUN --images DIR --out DIR

RUN is a run of task=stylization or its export; BN and SN use the statistics that the run's
norm.test_statistics names. Images are upright by their EXIF orientation, and written as PNG.
"""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.command_line import run_script, script_parser


def main() -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="RUN", help="a trained network")
    add("--images", type=Path, required=True, metavar="DIR", help="images in DIR and below")
    add("--out", type=Path, metavar="DIR", help="default: RUN/stylized, with all that Fig. 9 needs")
    add("--size", type=int, metavar="N", help="longer side in pixels; default: the image's own")
    args = parser.parse_args()
    from sn_imagenet.tasks.stylization import stylize_folder  # imports torch

    for path in stylize_folder(args.run, args.images, args.out, args.size):
        print(path, flush=True)


if __name__ == "__main__":
    run_script(main)
