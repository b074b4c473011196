"""``hydra/launcher=local``: the cells of a sweep on this machine, one torchrun each."""
