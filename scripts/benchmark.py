"""Time the normalisers against PyTorch's own: each layer alone, or ResNet-50's whole step.

python scripts/benchmark.py norms --samples 32 --json results/benchmarks/norms.json
python scripts/benchmark.py step --batch 16 --image-size 64
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sn_imagenet.norms.benchmark import layers, report, step


def main() -> int:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.benchmark == "norms":
        cases = []
        for samples in args.samples:
            for layout in args.layout:
                for dtype in args.dtype:
                    for shape in layers.SHAPES[:: args.every]:
                        print(f"N={samples} {layout} {dtype} {shape}", file=sys.stderr)
                        kind = (samples, shape, layout, dtype, device)
                        cases.append(layers.measure(*kind, args.repeats, args.compile))
        result = report.layers_report(cases, args.repeats, device)
        print(report.layers_table(cases))
        if args.plot:
            report.plot_layers(result, args.plot)
    else:
        settings = {
            "batch": args.batch,
            "image_size": args.image_size,
            "layout": args.layout[0],
            "dtype": args.dtype[0],
            "repeats": args.repeats,
        }
        case = step.measure_steps(device=device, **settings)
        result = report.step_report(case, settings, device)
        print(report.step_table(result))
    if args.json:
        report.write_json(result, args.json)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="benchmark", required=True)
    norms = kinds.add_parser("norms", help="one layer, forward + backward, on ResNet-50's shapes")
    norms.add_argument("--samples", type=int, nargs="+", default=[32, 2], help="batch sizes")
    norms.add_argument("--every", type=int, default=1, help="every k-th of the 12 shapes")
    norms.add_argument("--compile", action="store_true", help="torch.compile too (minutes)")
    norms.add_argument("--plot", type=Path, help="write a plot of the geometric means")
    steps = kinds.add_parser("step", help="ResNet-50's training step")
    steps.add_argument("--batch", type=int, default=16, help="images per step, a multiple of 8")
    steps.add_argument("--image-size", type=int, default=224)
    for kind in (norms, steps):
        kind.add_argument("--layout", nargs="+", choices=layers.LAYOUTS, default=["contiguous"])
        kind.add_argument("--dtype", nargs="+", choices=layers.DTYPES, default=["fp32"])
        kind.add_argument("--repeats", type=int, default=9, help="rounds; the median counts")
        kind.add_argument("--threads", type=int, help="CPU threads")
        kind.add_argument("--device", help="cpu or cuda; the GPU where there is one")
        kind.add_argument("--json", type=Path, help="write the report")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
