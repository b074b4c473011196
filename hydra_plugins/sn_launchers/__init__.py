"""``hydra/launcher=local`` and ``hydra/launcher=submitit_slurm``: one program for each run."""
