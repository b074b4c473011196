"""python -m sn_imagenet.norms: compile the CPU kernels now, not in the first forward pass."""

import torch

from sn_imagenet.norms import SwitchNorm2d
from sn_imagenet.norms.kernels import CPP, select_backend


def main() -> None:
    print("Compiling the kernels for this CPU (once, about half a minute)", flush=True)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    if select_backend(x) is CPP:  # otherwise the log says why not
        SwitchNorm2d(4)(x).sum().backward()


if __name__ == "__main__":
    main()
