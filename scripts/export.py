"""Export a trained run: python scripts/export.py RUN --out DIR

Writes model.safetensors and config.json, for classifiers in the layout of timm's hub, and a model
card (README.md). RUN is a run directory. The data are not needed.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sn_imagenet.command_line import run_script, script_parser
from sn_imagenet.reporting.model_card import UNKNOWN_LICENSE, model_card
from sn_imagenet.runs import read_run, write_text


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a trained run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--statistics",
        choices=["batch_average", "moving_average"],
        help="of BN in evaluation; default: the run's norm.test_statistics",
    )
    parser.add_argument("--pt2", action="store_true", help="also write model.pt2 (torch.export)")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx (extra: export)")
    parser.add_argument(
        "--license", default=UNKNOWN_LICENSE, metavar="NAME", help="of the weights, for the card"
    )
    args = parser.parse_args()
    run = read_run(args.run)
    # These import torch, only for a readable run.
    if run.cell.task == "detection":
        if args.pt2 or args.onnx:
            parser.error("--pt2 and --onnx: not for detectors")
        from sn_imagenet.tasks.detection.saved import export_detector

        exported = export_detector(args.run, args.out, args.statistics)
    else:
        from sn_imagenet.models.export import export

        exported = export(args.run, args.out, args.statistics, pt2=args.pt2, onnx=args.onnx)
    card = model_card(run, license=args.license, **asdict(exported))
    written = [args.out / name for name in exported.files]
    written.append(write_text(args.out / "README.md", card, "--out"))
    for path in written:
        print(path)


if __name__ == "__main__":
    run_script(main)
