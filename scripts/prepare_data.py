"""Find, index and verify a data set on disk, and say which data= line trains on it.

    python scripts/prepare_data.py DIR          # look at every file, list all that are bad
    python scripts/prepare_data.py DIR --mark   # and leave those out from now on

DIR is ImageNet in any of its layouts (class folders; the original tars with the devkit beside them;
Kaggle's ILSVRC/; Hugging Face's parquet files) or a folder of class folders. Nothing is unpacked,
moved or changed; the index is written beside the data or, where that is not allowed, to
~/.cache/sn-imagenet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sn_imagenet.data.prepare import default_workers, prepare_data
from sn_imagenet.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="a folder or one of the archives")
    parser.add_argument("--mark", action="store_true", help="mark bad files: left out everywhere")
    parser.add_argument(
        "--no-verify", action="store_true", help="index only; marks of an index are kept"
    )
    parser.add_argument("--workers", type=int, default=default_workers(), help="%(default)s")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: expected at least 1")
    if options.mark and options.no_verify:
        parser.error("--mark needs the files to be looked at: leave out --no-verify")
    try:
        sound = prepare_data(
            options.dir.expanduser(),
            verify=not options.no_verify,
            mark=options.mark,
            workers=options.workers,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
