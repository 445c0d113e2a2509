"""The augmented training batches of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from robust_export.data.augment import augment, cutmix, randaugment
from robust_export.data.datasets import Batch, Images
from robust_export.data.feed import Feed, load_extra_images
from robust_export.recipe.schema import Recipe
from robust_export.training.distributed import Processes
from robust_export.utils.sharded_rng import ShardedGenerator


class TrainingBatches:
    """The training images of a recipe, with extra images and augmentation, in shards of this process.

    RandAugment and CutMix depend on the whole batch: with them each process loads whole batches and takes its
    shard after augmentation.
    """

    def __init__(self, recipe: Recipe, images: Images, processes: Processes) -> None:
        spec, data = recipe.model, recipe.data
        extra = load_extra_images(data.extra, images, spec.image_size, spec.in_chans) if data.extra else None
        self.data, self.processes = data, processes
        self.feed = Feed(images, recipe.train.batch_size, data.workers, extra, data.extra_ratio)
        self.whole = data.randaugment > 0 or data.cutmix > 0

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.feed)

    def size(self, step: int) -> int:
        """Return the number of images of batch number `step`, over all processes."""
        return self.feed.batch_size_at(step)

    def epoch(self, seed: int, skip: int) -> Iterator[Batch]:
        """Yield the batches from number `skip` on, not yet augmented, in the order that the seed gives."""
        return self.feed.epoch(seed, skip, None if self.whole else self.processes.sharded_generator())

    def augment(self, batch: Batch, generator: ShardedGenerator) -> Batch:
        """Return this process's shard, augmented; with CutMix its labels are probabilities [N, K]."""
        data, (pixels, labels) = self.data, batch
        with generator.unsharded() if self.whole else nullcontext():
            pixels = augment(pixels, data.shift, data.flip, generator)
        if self.whole:
            pixels = randaugment(pixels, data.randaugment, data.randaugment_magnitude)
            pixels, labels = cutmix(pixels, labels, data.cutmix, len(self.feed.images.classes))
            pixels, labels = pixels[generator.shard], labels[generator.shard]
        return pixels, labels
