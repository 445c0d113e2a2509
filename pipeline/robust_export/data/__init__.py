"""Data sets: where they come from (source, sources, torchvision_sets, folder), splits, augmentation."""

from robust_export.data.augment import augment
from robust_export.data.datasets import Batch, Images, batch_count, batches, load_dataset, load_splits

__all__ = ["Batch", "Images", "augment", "batch_count", "batches", "load_dataset", "load_splits"]
