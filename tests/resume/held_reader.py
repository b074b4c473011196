"""``train.py`` with a pause when it reads the digits: held_reader.py FOLDER [OVERRIDE ...].

It creates a file ``reading`` in FOLDER and waits for one named ``go on``.
"""

import runpy
import sys
import time
from pathlib import Path

import sklearn.datasets

TRAIN = Path(__file__).parents[2] / "train.py"
folder = Path(sys.argv.pop(1))
load_digits = sklearn.datasets.load_digits


def load_digits_after_pause():
    (folder / "reading").touch()
    while not (folder / "go on").exists():
        time.sleep(0.02)
    return load_digits()


sklearn.datasets.load_digits = load_digits_after_pause
sys.argv[0] = str(TRAIN)
runpy.run_path(str(TRAIN), run_name="__main__")
