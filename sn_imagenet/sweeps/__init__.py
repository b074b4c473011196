"""Sweeps on one machine: a pool of processes, one per run, monitored through the run's files.

Nothing here imports torch: the state of a run is read from its run directory.
"""
