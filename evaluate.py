"""Calibrate and evaluate trained runs, and write their results, tables and figures.

python evaluate.py run=runs/imagenet/resnet50/sn/8x2/seed0
torchrun --nproc_per_node 8 evaluate.py run='runs/imagenet/*/*/*/seed*' table=top1.md
python evaluate.py run=RUN_DIR calibration.samples=all calibration.estimator=population
"""

from sn_imagenet.programs import evaluate

if __name__ == "__main__":
    evaluate()
