"""How fast the normalisers are, against PyTorch's own: scripts/benchmark.py."""
