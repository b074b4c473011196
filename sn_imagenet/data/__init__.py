"""Data sets, augmentations and batches: functions of (seed, epoch, sample id).

Import from the modules: what checks a folder of images needs no torch.
"""
