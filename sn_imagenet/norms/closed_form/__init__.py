"""The closed form of a mixture's [N, C] tables and their gradients, on a GPU.

On CPUs it is in the compiled operators (``kernels/combine.h``). Autograd on
``MixtureNorm2d.combine`` computes the same up to rounding, usually in more time:
``scripts/benchmark.py closed-form`` compares both with the same kernels on the CPU
(results/benchmarks/closed_form_cpu.json). On CUDA the two were not timed. There the closed form
takes four launches per layer, and autograd 81 PyTorch operators with SN and 33 with BN (counted by
tests/norms/triton_cases.py).
"""

from sn_imagenet.norms.closed_form.triton_tables import (
    Layout,
    Parameters,
    TritonTables,
    takes_tables,
)

__all__ = ["Layout", "Parameters", "TritonTables", "takes_tables"]
