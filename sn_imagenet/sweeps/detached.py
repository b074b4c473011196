"""Imported by multiprocessing's fork server, so that it leaves the process group of its sweep.

A signal to the group must not end the server, from which the sweep learns how a run has ended.
"""

import os

os.setsid()
