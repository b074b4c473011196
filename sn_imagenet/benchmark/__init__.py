"""Benchmarks of normalization layers and training steps against PyTorch's, and Table 1's counts.

scripts/benchmark.py runs the benchmarks; scripts/make_tables.py uses the census.
"""
