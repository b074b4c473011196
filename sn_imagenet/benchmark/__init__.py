"""How fast normalizers and steps are, beside PyTorch's own, and what Table 1 counts.

scripts/benchmark.py measures them; scripts/make_tables.py asks for the census.
"""
