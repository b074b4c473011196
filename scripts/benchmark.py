"""Time the normalisers against PyTorch's own: each layer alone, or ResNet-50's whole step.

python scripts/benchmark.py norms --samples 32 2 16x2 --json results/benchmarks/norms.json
python scripts/benchmark.py step --batch 16 --image-size 64
python scripts/benchmark.py step --batch 8 16 --modes eager graph reduce-overhead --dtype bf16
"""

from __future__ import annotations

import sys

from sn_imagenet.benchmark.command import run

if __name__ == "__main__":
    sys.exit(run(__doc__))
