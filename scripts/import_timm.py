"""Import weights of torchvision or timm: python scripts/import_timm.py NAME FILE --out RUN

NAME is the name in torchvision (ResNet50_Weights.IMAGENET1K_V1, or with task=detection
FasterRCNN_ResNet50_FPN_Weights.COCO_V1 and MaskRCNN_ResNet50_FPN_Weights.COCO_V1) or timm
(resnet50.a1_in1k, or with norm=gn resnet50_gn.a1h_in1k). FILE is the published file; --url prints
where to download it. RUN becomes a run directory for evaluate.py run=RUN, with the weights' image
size, crop and interpolation. OPTION is an option of train.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sn_imagenet.benchmark.command import compose_config
from sn_imagenet.command_line import run_script, script_parser
from sn_imagenet.models.published import published_url
from sn_imagenet.tasks.import_weights import import_published


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help=".pth or .safetensors")
    parser.add_argument("--out", metavar="RUN", help="a new run directory")
    parser.add_argument("--url", action="store_true", help="only print the URL of the file")
    parser.add_argument("overrides", nargs="*", metavar="OPTION", help="option of train.py")
    args = parser.parse_intermixed_args()
    if not args.url and (args.file is None or args.out is None):
        parser.error("expected FILE and --out RUN, or --url")
    if args.url:
        print(published_url(args.name))
        return
    config = compose_config(["norm=bn", *args.overrides])
    print(import_published(args.file, args.name, replace(config, run_dir=args.out)))


if __name__ == "__main__":
    run_script(main)
