"""What a batch holds, who gets which answer, and what happens to those who leave or whose batch fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from robust_export.serving.batching import Batcher, Observe
from tests.serving.bundles import Array


class Gate:
    """A classifier that waits to be let through, and remembers its batches. An image's logit is its value."""

    def __init__(self, *, open: bool = True) -> None:
        self.batches: list[list[float]] = []
        self.entered, self.let = threading.Event(), threading.Event()
        if open:
            self.let.set()

    def __call__(self, pixels: Array) -> Array:
        self.batches.append(pixels[:, 0, 0, 0].tolist())
        self.entered.set()
        assert self.let.wait(60)
        if pixels.min() < 0:
            raise ValueError("negative")
        return pixels.reshape(len(pixels), -1)[:, :1].copy()

    async def has_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 60)


def images(*values: float) -> Array:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def run(
    gate: Gate, then: Callable[[Batcher], Awaitable[None]], max_batch: int = 4, delay: float = 0,
    observe: Observe = lambda *_: None,
) -> None:  # fmt: skip
    async def main() -> None:
        batcher = Batcher(gate, max_batch, delay, observe)
        try:
            await then(batcher)
        finally:
            gate.let.set()
            await batcher.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_arrives_while_a_batch_runs_is_the_next_one() -> None:
    gate = Gate(open=False)

    async def then(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await gate.has_entered()
        others = [asyncio.create_task(batcher(images(v))) for v in (2, 3, 4, 5, 6)]
        await asyncio.sleep(0)
        gate.let.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.tolist() for answer in answers] == [[[v]] for v in (1, 2, 3, 4, 5, 6)]

    run(gate, then)
    assert gate.batches == [[1], [2, 3, 4, 5], [6]]


def test_a_request_waits_for_others_to_join() -> None:
    gate = Gate()

    async def then(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await asyncio.sleep(0)
        await asyncio.gather(first, batcher(images(2, 3, 4)))

    run(gate, then, delay=60)
    assert gate.batches == [[1, 2, 3, 4]]


def test_a_batch_is_never_larger_than_it_may_be_and_keeps_the_order() -> None:
    gate = Gate(open=False)

    async def then(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(0)))
        await gate.has_entered()
        asked = [images(1, 2, 3), images(4, 5), images(*range(6, 16)), images(16)]
        tasks = [asyncio.create_task(batcher(pixels)) for pixels in asked]
        await asyncio.sleep(0)
        gate.let.set()
        for pixels, answer in zip(asked, await asyncio.gather(*tasks), strict=True):
            np.testing.assert_array_equal(answer, pixels.reshape(-1, 1))
        await first

    run(gate, then)
    assert gate.batches == [[0], [1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16]]


def test_who_left_is_not_computed_and_takes_no_answer() -> None:
    gate = Gate(open=False)

    async def then(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await gate.has_entered()
        leaving, large, staying = (
            asyncio.create_task(batcher(images(*values))) for values in ((2,), range(10, 19), (3,))
        )
        await asyncio.sleep(0)
        leaving.cancel()
        large.cancel()
        await asyncio.sleep(0)
        gate.let.set()
        assert (await staying).tolist() == [[3]]
        await first

    run(gate, then)
    assert gate.batches == [[1], [3]]


def test_a_failure_is_that_of_its_batch_alone() -> None:
    gate = Gate(open=False)

    async def then(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await gate.has_entered()
        tasks = [asyncio.create_task(batcher(images(*v))) for v in ((-1, 2), (3, 4), (5,))]
        await asyncio.sleep(0)
        gate.let.set()
        assert (await first).tolist() == [[1]]
        for task in tasks[:2]:
            with pytest.raises(ValueError, match="negative"):
                await task
        assert (await tasks[2]).tolist() == [[5]]

    run(gate, then)


def test_what_cannot_be_one_batch_fails_and_the_next_runs() -> None:
    gate = Gate(open=False)

    async def then(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher(images(1)))
        await gate.has_entered()
        others = [asyncio.create_task(batcher(v)) for v in (images(2), np.zeros((1, 1, 2, 2), np.float32))]
        await asyncio.sleep(0)
        gate.let.set()
        await first
        for other in others:
            with pytest.raises(ValueError, match="dimension"):
                await other
        assert (await batcher(images(3))).tolist() == [[3]]

    run(gate, then)


def test_counts_that_cannot_be_kept_fail_a_batch_and_the_next_runs() -> None:
    failures = [OSError("the disk is full")]

    def observe(*_: object) -> None:
        if failures:
            raise failures.pop()

    async def then(batcher: Batcher) -> None:
        with pytest.raises(OSError, match="full"):
            await batcher(images(1))
        assert (await batcher(images(2))).tolist() == [[2]]

    run(Gate(), then, observe=observe)
