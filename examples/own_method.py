"""A normalization method of your own, compared with BN and SN in two settings of the paper:

python examples/own_method.py     (six short runs on handwritten digits, one minute)

docs/custom-norm.md explains the class; configs/norm/half.yaml names it.
"""

import os
import subprocess
import sys
from pathlib import Path

from sn_imagenet.norms import MomentNorm2d, Moments, Statistics

HERE = Path(__file__).resolve().parent
SWEEP = ["norm=bn,sn,half", "batch=8x8,8x1", "data=digits", "model=resnet14_mini"]
SHORT = ["protocol.base_lr=0.2", "trainer.epochs=2"]


class HalfNorm2d(MomentNorm2d):
    """Half layer statistics, half batch statistics."""

    stores_statistics = True  # it uses the batch's statistics, so evaluation needs stored ones

    def combine(self, moments: Moments) -> Statistics:
        layer_mean, layer_var = moments.layer()  # [n, R, 1]
        batch_mean, batch_var = self.batch_statistics(moments)  # [1, R, C]
        return (layer_mean + batch_mean) / 2, (layer_var + batch_var) / 2


if __name__ == "__main__":
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    runs = sys.argv[1] if len(sys.argv) > 1 else "runs/own_method"
    train = ["train.py", "-m", "--config-dir", str(HERE / "configs"), "hydra/launcher=local"]
    tables = ["scripts/make_tables.py", "--runs", runs, "--out", runs, "--only", "table2"]
    for command in ([*train, *SWEEP, *SHORT, f"runs_dir={runs}"], tables):
        subprocess.run([sys.executable, *command], cwd=HERE.parent, check=True)
