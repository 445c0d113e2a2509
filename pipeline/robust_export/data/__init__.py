"""Data sets: their sources (source, sources, torchvision_sets, folder), splits, batches, augmentation."""
