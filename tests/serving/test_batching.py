"""Batches: what they contain, who gets which logits, cancellation, failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from robust_export.serving.batching import Batcher, Observe
from tests.serving.bundles import Array
from tests.serving.servers import TIMEOUT


class BlockingClassifier:
    """Records its batches and blocks until `release` is set. The logit of an image is its value."""

    def __init__(self, *, released: bool = False) -> None:
        self.batches: list[list[float]] = []
        self.entered, self.release = threading.Event(), threading.Event()
        if released:
            self.release.set()

    def __call__(self, pixels: Array) -> Array:
        self.batches.append(pixels[:, 0, 0, 0].tolist())
        self.entered.set()
        assert self.release.wait(TIMEOUT)
        if pixels.min() < 0:
            raise ValueError("negative")
        return pixels.reshape(len(pixels), -1)[:, :1].copy()

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, TIMEOUT)


def images(*values: float) -> Array:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def run(
    classifier: BlockingClassifier, scenario: Callable[[Batcher], Awaitable[None]], max_batch: int = 4,
    delay: float = 0, observe: Observe = lambda *_: None,
) -> None:  # fmt: skip
    async def main() -> None:
        batcher = Batcher(classifier, max_batch, delay, observe)
        try:
            await scenario(batcher)
        finally:
            classifier.release.set()
            await batcher.close()

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_arrivals_during_a_batch_form_the_next() -> None:
    classifier = BlockingClassifier()

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await classifier.wait_until_entered()
        others = [asyncio.create_task(batcher(images(v))) for v in (2, 3, 4, 5, 6)]
        await asyncio.sleep(0)
        classifier.release.set()
        logits = await asyncio.gather(first, *others)
        assert [rows.tolist() for rows in logits] == [[[v]] for v in (1, 2, 3, 4, 5, 6)]

    run(classifier, scenario)
    assert classifier.batches == [[1], [2, 3, 4, 5], [6]]


def test_request_waits_until_the_batch_is_full() -> None:
    classifier = BlockingClassifier(released=True)

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await asyncio.sleep(0)
        await asyncio.gather(first, batcher(images(2, 3, 4)))

    run(classifier, scenario, delay=TIMEOUT)
    assert classifier.batches == [[1, 2, 3, 4]]


def test_large_requests_are_split_in_order() -> None:
    classifier = BlockingClassifier()

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(0)))
        await classifier.wait_until_entered()
        requests = [images(1, 2, 3), images(4, 5), images(*range(6, 16)), images(16)]
        tasks = [asyncio.create_task(batcher(pixels)) for pixels in requests]
        await asyncio.sleep(0)
        classifier.release.set()
        for pixels, logits in zip(requests, await asyncio.gather(*tasks), strict=True):
            np.testing.assert_array_equal(logits, pixels.reshape(-1, 1))
        await first

    run(classifier, scenario)
    assert classifier.batches == [[0], [1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16]]


def test_cancelled_requests_are_not_computed() -> None:
    classifier = BlockingClassifier()

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await classifier.wait_until_entered()
        small, large, kept = (
            asyncio.create_task(batcher(images(*values))) for values in ((2,), range(10, 19), (3,))
        )
        await asyncio.sleep(0)
        small.cancel()
        large.cancel()
        await asyncio.sleep(0)
        classifier.release.set()
        assert (await kept).tolist() == [[3]]
        await first

    run(classifier, scenario)
    assert classifier.batches == [[1], [3]]


def test_failure_affects_its_batch_only() -> None:
    classifier = BlockingClassifier()

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await classifier.wait_until_entered()
        tasks = [asyncio.create_task(batcher(images(*v))) for v in ((-1, 2), (3, 4), (5,))]
        await asyncio.sleep(0)
        classifier.release.set()
        assert (await first).tolist() == [[1]]
        for task in tasks[:2]:
            with pytest.raises(ValueError, match="negative"):
                await task
        assert (await tasks[2]).tolist() == [[5]]

    run(classifier, scenario)


def test_batch_runs_after_one_that_cannot_be_concatenated() -> None:
    classifier = BlockingClassifier()

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await classifier.wait_until_entered()
        others = [asyncio.create_task(batcher(v)) for v in (images(2), np.zeros((1, 1, 2, 2), np.float32))]
        await asyncio.sleep(0)
        classifier.release.set()
        await first
        for other in others:
            with pytest.raises(ValueError, match="dimension"):
                await other
        assert (await batcher(images(3))).tolist() == [[3]]

    run(classifier, scenario)


def test_batch_runs_after_a_failing_observer() -> None:
    failures = [OSError("the disk is full")]

    def observe(*_: object) -> None:
        if failures:
            raise failures.pop()

    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(OSError, match="full"):
            await batcher(images(1))
        assert (await batcher(images(2))).tolist() == [[2]]

    run(BlockingClassifier(released=True), scenario, observe=observe)
