"""python -m sn_imagenet.norms: compile the CPU kernels now, not in the first forward pass."""

from sn_imagenet.norms.kernels.cpp import is_built

if __name__ == "__main__":
    print("Compiling the kernels for this CPU (once, about half a minute)", flush=True)
    is_built()  # otherwise the log says why not
