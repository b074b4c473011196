"""python -m sn_imagenet.norms: compile now what the first layer on a CPU would wait for."""

import torch

from sn_imagenet.norms import SwitchNorm2d
from sn_imagenet.norms.kernels import CPP, select_backend


def main() -> None:
    print("Compiling the normalizers for this CPU (half a minute, once)", flush=True)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    if select_backend(x) is CPP:  # or it has been said why not
        SwitchNorm2d(4)(x).sum().backward()


if __name__ == "__main__":
    main()
