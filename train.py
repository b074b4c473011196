"""Train and evaluate one run of Table 2, and write its result.

torchrun train.py norm=sn batch=8x2                           one process
torchrun --nproc_per_node 8 train.py norm=sn batch=8x2        eight processes, same results
python train.py -m norm=bn,gn,sn 'batch=glob(*)' seed=0,1,2   a sweep
python train.py data=digits model=resnet50_mini trainer.epochs=8   needs no download
"""

from sn_imagenet.programs import train

if __name__ == "__main__":
    train()
