"""Data sets: their sources (source, sources, torchvision_sets, folder), splits, batches, augmentation."""

from robust_export.data.augment import augment, cutmix, randaugment
from robust_export.data.datasets import Batch, Images, batch_count, batches, load_dataset, load_splits
from robust_export.data.feed import Feed, load_extra

__all__ = [
    "Batch", "Feed", "Images", "augment", "batch_count", "batches", "cutmix", "load_dataset", "load_extra",
    "load_splits", "randaugment",
]  # fmt: skip
