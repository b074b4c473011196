"""Reproduce the ImageNet experiments of "Differentiable Learning-to-Normalize via Switchable
Normalization" (Luo et al., arXiv:1806.10779): each (#GPUs, samples per GPU) setting of Table 2,
exactly, on any number of processes.
"""
