"""Train one cell of Table 2, evaluate it, write its result.

torchrun train.py norm=sn batch=8x2                           one process
torchrun --nproc_per_node 8 train.py norm=sn batch=8x2        eight: the same experiment
python train.py -m norm=bn,gn,sn 'batch=glob(*)' seed=0,1,2   a sweep
python train.py data=digits model=resnet50_mini trainer.epochs=8   with nothing downloaded
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sn_imagenet.output import quiet_interrupt

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    quiet_interrupt()
    import hydra

    from sn_imagenet.command_line import command_line
    from sn_imagenet.config import from_hydra

    with command_line() as line:

        @hydra.main(version_base="1.3", config_path="configs", config_name="config")
        def cell(composed: DictConfig) -> None:
            line.check(composed)
            from sn_imagenet.distributed import raise_on_all_ranks, rank
            from sn_imagenet.reporting.figures.files import weights_figure
            from sn_imagenet.reporting.report import report_run
            from sn_imagenet.training import train

            with line.session.cell():
                with raise_on_all_ranks():
                    config = from_hydra(composed)
                result = train(config, weights_figure)
                if rank() == 0 and config.evaluate:
                    report_run(result, config.run_dir)

        cell()


if __name__ == "__main__":
    main()
