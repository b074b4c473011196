"""Train and evaluate one run of Table 2, and write its result.

torchrun train.py norm=sn batch=8x2                           one process
torchrun --nproc_per_node 8 train.py norm=sn batch=8x2        eight processes, same results
python train.py -m norm=bn,gn,sn 'batch=glob(*)' seed=0,1,2   a sweep
python train.py data=digits model=resnet50_mini trainer.epochs=8   needs no download
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sn_imagenet.output import disable_interrupt_traceback

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    disable_interrupt_traceback()
    import hydra

    from sn_imagenet.command_line import command_line
    from sn_imagenet.config import from_hydra

    with command_line() as line:

        @hydra.main(version_base="1.3", config_path="configs", config_name="config")
        def run(composed: DictConfig) -> None:
            line.check_config(composed)
            from sn_imagenet.distributed import raise_on_all_ranks, rank
            from sn_imagenet.reporting.figures.files import weights_figure
            from sn_imagenet.reporting.report import report_run
            from sn_imagenet.training import train

            with line.session.run():
                with raise_on_all_ranks():
                    config = from_hydra(composed)
                result = train(config, weights_figure)
                if rank() == 0 and config.evaluate:
                    report_run(result, config.run_dir)

        run()


if __name__ == "__main__":
    main()
