"""Sweeps on one machine: a pool of programs, one per cell, watched through its files.

Nothing here imports torch: a cell's state is what its run directory says.
"""
