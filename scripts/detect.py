"""Find objects in your own images: python scripts/detect.py --run RUN --images DIR --out DIR

RUN is a finished run of task=detection. Writes each image with its objects, and detections.json.
"""

from __future__ import annotations

from pathlib import Path

from sn_imagenet.command_line import run_script, script_parser


def main() -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="RUN", help="the directory of a trained run")
    add("--images", type=Path, required=True, metavar="DIR", help="images in DIR and below")
    add("--out", type=Path, metavar="DIR", help="default: RUN/detected, which a report shows")
    drawn = "draw objects with at least this score; default: 0.5"
    add("--score", type=float, default=0.5, metavar="S", help=drawn)
    true = "of images in COCO's format: only these, and their true objects in OUT/content"
    add("--annotations", type=Path, metavar="FILE", help=true)
    args = parser.parse_args()
    from sn_imagenet.tasks.detection.detect import detect_folder  # imports torch

    for path in detect_folder(**vars(args)):
        print(path, flush=True)


if __name__ == "__main__":
    run_script(main)
