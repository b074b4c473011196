"""Data sets, augmentation and batches, all determined by (seed, epoch, sample id).

Import from the modules, because checking a folder of images does not need torch.
"""
