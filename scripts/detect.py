"""Find objects in your own images: python scripts/detect.py --run RUN --images DIR --out DIR

RUN is a finished run of task=detection. Writes each image with its objects, and detections.json.
"""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.command_line import run_script, script_parser


def main() -> int:
    parser = script_parser(__doc__)
    add, kinds = parser.add_argument, ["batch_average", "moving_average"]
    own = "default: the run's norm.test_statistics"
    add("--run", type=Path, required=True, metavar="RUN", help="the directory of a trained run")
    add("--images", type=Path, required=True, metavar="DIR", help="images in DIR and below")
    add("--out", type=Path, required=True, metavar="DIR", help="output folder")
    drawn = "draw objects with at least this score; default: 0.5"
    add("--score", type=float, default=0.5, metavar="S", help=drawn)
    add("--statistics", choices=kinds, help=f"which BN statistics to use; {own}")
    beside = "annotations in COCO's format, drawn at the left"
    add("--annotations", type=Path, metavar="FILE", help=beside)
    args = parser.parse_args()
    from sn_imagenet.tasks.detection.detect import detect_folder  # imports torch

    options = (args.run, args.images, args.out, args.score, args.statistics, args.annotations)
    for path in detect_folder(*options):
        print(path, flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
