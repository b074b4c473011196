"""``hydra/launcher=local`` and ``hydra/launcher=submitit_slurm``: one torchrun for each cell."""
