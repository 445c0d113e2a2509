"""Data sets: where they come from, their splits, batches and augmentation."""
