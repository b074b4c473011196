"""The closed form of a mixture's [N, C] tables and their gradients, on a GPU.

On CPUs it is in the compiled operators (``kernels/combine.h``). Autograd on
``MixtureNorm2d.combine`` computes the same up to rounding, usually in more time.
A benchmark compared both with the same C++ kernels on one thread
(results/benchmarks/closed_form_cpu.json; in brackets two threads, closed_form_cpu_2_threads.json;
medians of 5 alternating rounds). For a step of resnet50_mini on 16 px, autograd takes, with SN,
2.65 (2.25) times as long at (8,1), 2.19 (2.76) at (8,2) and 1.87 (1.99) at (8,8), and with BN 2.06,
2.14 and 1.57 (1.73, 2.09, 1.99); for a step of ResNet-50 on 64 px at (8,2), 1.28 (1.41) with SN and
1.22 (1.28) with BN. For a layer at N = 32 or 16x2 it takes 0.5 to 2.2 (0.8 to 3.4) times as long,
the more the smaller the maps: on small maps autograd's graph over the tables costs more than the
kernels, while the closed form's compiled node needs no Python. SN's step at (8,2) was also measured
under torch.compile, before that node existed: autograd took 1.78 times as long compiled, and 1.75
in eager mode (closed_form_cpu_compiled.json). On CUDA the two were not timed. There the closed form
takes four launches per layer, and autograd 81 PyTorch operators with SN and 33 with BN (counted by
tests/norms/triton_cases.py).
"""

from sn_imagenet.norms.closed_form.triton_tables import (
    Layout,
    Parameters,
    Running,
    TritonTables,
    takes_tables,
)

__all__ = ["Layout", "Parameters", "Running", "TritonTables", "takes_tables"]
