"""Time layers and training steps against PyTorch's, and a training run against its parts.

python scripts/benchmark.py norms --samples 32 2 16x2 --json results/benchmarks/norms.json
python scripts/benchmark.py step --batch 16 8x2 --image-size 64
python scripts/benchmark.py step --batch 8x1 8x2 --dtype bf16
python scripts/benchmark.py step --network resnet50_mini --image-size 16 --batch 8x2 --threads 1
python scripts/benchmark.py train data=digits model=resnet50_mini norm=sn batch=8x2
python scripts/benchmark.py loader --images /data/imagenet/val --json loader.json
"""

from __future__ import annotations

from sn_imagenet.benchmark.command import run
from sn_imagenet.command_line import run_script

if __name__ == "__main__":
    run_script(lambda: run(__doc__))
