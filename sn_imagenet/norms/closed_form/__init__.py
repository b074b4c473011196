"""The closed form of a mixture's [N, C] tables and their gradients, on a GPU.

On CPUs it is in the compiled operators (``kernels/combine.h``), compared with autograd on
``MixtureNorm2d.combine`` in results/benchmarks/README.md. On CUDA the two were not timed. There the
closed form takes four launches per layer, and autograd 81 PyTorch operators with SN and 33 with BN.
"""
