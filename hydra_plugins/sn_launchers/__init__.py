"""``hydra/launcher=local`` and ``hydra/launcher=submitit_slurm``: a program for each cell."""
