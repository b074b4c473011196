"""torchvision's and timm's weights as a run: python scripts/import_timm.py NAME FILE --out RUN

NAME is torchvision's (ResNet50_Weights.IMAGENET1K_V1) or timm's (resnet50.a1_in1k, and with
norm=gn resnet50_gn.a1h_in1k), FILE what they publish under it; --url prints from where. RUN becomes
a run directory for evaluate.py run=RUN, with their size, crop and interpolation. What follows are
options of train.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from sn_imagenet.benchmark.compose import composed
from sn_imagenet.errors import UserError
from sn_imagenet.evaluation.import_weights import import_published
from sn_imagenet.models.published import published

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help=".pth or .safetensors")
    parser.add_argument("--out", metavar="RUN", help="a new run directory")
    parser.add_argument("--url", action="store_true", help="print where the file is, no more")
    parser.add_argument("overrides", nargs="*", metavar="OPTION", help="of train.py")
    args = parser.parse_intermixed_args()
    if not args.url and (args.file is None or args.out is None):
        parser.error("FILE and --out RUN are needed, or --url")
    try:
        if args.url:
            print(published(args.name).url)
            return 0
        config = composed(CONFIGS, ["norm=bn", *args.overrides])
        print(import_published(args.file, args.name, replace(config, run_dir=args.out)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
