"""Train and evaluate one run of Table 2, and write its result.

torchrun train.py norm=sn batch=8x2                           one process
torchrun --nproc_per_node 8 train.py norm=sn batch=8x2        eight processes, same results
python train.py -m norm=bn,gn,sn 'batch=glob(*)' seed=0,1,2   a sweep
python train.py data=digits model=resnet50_mini trainer.epochs=8   needs no download
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sn_imagenet.command_line import hydra_program, read_experiment

if TYPE_CHECKING:
    from sn_imagenet.config import ExperimentConfig
    from sn_imagenet.session import Session


@hydra_program("configs", "config", read_experiment)
def main(config: ExperimentConfig, session: Session) -> None:
    from sn_imagenet.distributed import rank
    from sn_imagenet.training import train

    run = train(config)
    if rank() == 0 and config.evaluate:
        from sn_imagenet.reporting.report import report_runs  # imports matplotlib

        report_runs([run])


if __name__ == "__main__":
    main()
