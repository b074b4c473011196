"""Find, index and verify a data set on disk, and print the data= arguments that train on it.

    python scripts/prepare_data.py DIR          # decode every file, list all bad files
    python scripts/prepare_data.py DIR --mark   # also leave the bad files out from now on

DIR holds ImageNet in any of its layouts (class folders; the original tars with the devkit beside
them; Kaggle's ILSVRC/; Hugging Face's parquet files), class folders, or a data set in COCO's layout
(annotations/instances_NAME.json for each folder NAME of images; --mark is refused). The data are
not unpacked, moved or changed. The index is written beside the data or, if that is not permitted,
to ~/.cache/sn-imagenet.
"""

from __future__ import annotations

import os
from pathlib import Path

from sn_imagenet.command_line import run_script, script_parser
from sn_imagenet.data.prepare import prepare_data


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="a folder or an archive of ImageNet")
    parser.add_argument("--mark", action="store_true", help="mark bad files, to leave them out")
    parser.add_argument(
        "--no-verify", action="store_true", help="index only, and keep existing marks"
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="%(default)s")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: expected at least 1")
    if options.mark and options.no_verify:
        parser.error("--mark needs verified files: remove --no-verify")
    root, verify = options.dir.expanduser(), not options.no_verify
    if list((root / "annotations").glob("instances_*.json")):
        if options.mark:
            parser.error(
                f"--mark: {root} has COCO's layout, of which no image is left out; replace the bad "
                "files, or remove them from the annotations"
            )
        from sn_imagenet.tasks.detection.prepare import prepare_coco  # imports torch

        usable = prepare_coco(root, verify=verify, workers=options.workers)
    else:
        usable = prepare_data(root, verify=verify, mark=options.mark, workers=options.workers)
    return 0 if usable else 1


if __name__ == "__main__":
    run_script(main)
