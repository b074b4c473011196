"""Load data with two workers until killed: loading.py [stuck].

Iterates over each loader in turn: prints its name and the pids of its workers, then a dot for each
batch. Ignores signals itself; its workers are unchanged. ``stuck``: loading a sample never ends.
"""

import signal
import sys
import time
from multiprocessing import active_children
from types import SimpleNamespace

import torch
from torch.utils.data import Dataset

from sn_imagenet.data.loaders import calibration_loader, eval_loader, train_loader
from sn_imagenet.data.pixels import StoredBatch

SHARED = {"rank": 0, "world_size": 1, "workers": 2}
LOADERS = {
    "train": lambda data: train_loader(data, global_batch=4, seed=0, **SHARED),
    "eval": lambda data: eval_loader(data, batch_size=4, **SHARED),
    "calibration": lambda data: calibration_loader(
        data, minibatch=4, samples="all", seed=0, minibatches_per_batch=1, **SHARED
    ),
}


class Samples(Dataset):
    data = SimpleNamespace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __len__(self):
        return 40

    def __getitems__(self, keys):
        time.sleep(10_000 if "stuck" in sys.argv else 0.02)
        images = torch.zeros(len(keys), 3, 4, 4, dtype=torch.uint8)
        return StoredBatch(images, torch.zeros(len(keys), dtype=torch.int64), None)


if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    loaders = {name: make(Samples()) for name, make in LOADERS.items()}
    while True:
        for name, loader in loaders.items():
            batches = iter(loader)
            print(name, *(worker.pid for worker in active_children()), flush=True)
            for _ in batches:
                print(".", flush=True)
