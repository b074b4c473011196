"""Export a trained run: python scripts/export.py RUN --out DIR

Writes model.safetensors and config.json in the layout of timm's hub, and a model card (README.md).
RUN is a run directory. The data are not needed.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sn_imagenet.command_line import run_script, script_parser
from sn_imagenet.reporting.model_card import UNKNOWN_LICENSE, model_card
from sn_imagenet.runs import read_run, write_text


def main() -> int:
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
    from sn_imagenet.models.export import export  # imports torch, only for a readable run

    exported = export(args.run, args.out, args.statistics, pt2=args.pt2, onnx=args.onnx)
    card = model_card(run, license=args.license, **asdict(exported))
    written = [args.out / name for name in exported.files]
    written.append(write_text(args.out / "README.md", card, "--out"))
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    run_script(main)
