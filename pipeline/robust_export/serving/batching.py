"""Requests that arrive together run as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from robust_export.runtimes.classifier import Logits, Pixels

Observe = Callable[
    [int, Sequence[float], float], None
]  # images, seconds that each part waited, and that it ran


@dataclass(frozen=True)
class _Part:
    """Images of one request, at most a batch of them."""

    pixels: Pixels
    answer: asyncio.Future[Logits]
    arrived: float  # s, of the loop's clock


class Batcher:
    """Runs a classifier in a thread of its own, a batch at a time, in the order of arrival.

    A batch begins when it is full, or when its first request has waited for `max_delay`; while one runs, the
    next one gathers. A request of more than `max_batch` images is split. What waits is not bounded here.

    Args:
        classify: pixels [N, C, H, W] to logits [N, K]; called in the thread.
        max_batch: images.
        max_delay: seconds.
        observe: told of every batch that ran.
    """

    def __init__(
        self, classify: Callable[[Pixels], Logits], max_batch: int, max_delay: float, observe: Observe
    ) -> None:
        self._classify, self._observe = classify, observe
        self._max_batch, self._max_delay = max_batch, max_delay
        self._waiting: deque[_Part] = deque()
        self._images = 0  # in `_waiting`
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "inference")
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits of these images, N of at least 1.

        Raises:
            Exception: what the classifier raises; every request of its batch gets it.
        """
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        if len(pixels) <= self._max_batch:
            return await self._put(pixels)
        starts = range(0, len(pixels), self._max_batch)
        parts = [self._put(pixels[start : start + self._max_batch]) for start in starts]
        return np.concatenate(await asyncio.gather(*parts))

    async def close(self) -> None:
        """End the thread. What still waits is never answered."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False)

    def _put(self, pixels: Pixels) -> asyncio.Future[Logits]:
        loop = asyncio.get_running_loop()
        part = _Part(pixels, loop.create_future(), loop.time())
        self._waiting.append(part)
        self._images += len(pixels)
        self._arrived.set()
        return part.answer

    async def _run(self) -> None:
        while True:
            await self._gather()
            batch = self._take()
            if batch:
                await self._answer(batch)

    async def _gather(self) -> None:
        """Wait until a batch is to begin."""
        loop = asyncio.get_running_loop()
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        begin = self._waiting[0].arrived + self._max_delay
        while self._images < self._max_batch and (left := begin - loop.time()) > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Part]:
        """Take from the queue what fits one batch, without what nobody waits for any more."""
        batch: list[_Part] = []
        room = self._max_batch
        while self._waiting and len(self._waiting[0].pixels) <= room:
            part = self._waiting.popleft()
            self._images -= len(part.pixels)
            if not part.answer.done():
                batch.append(part)
                room -= len(part.pixels)
        return batch

    async def _answer(self, batch: list[_Part]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            pixels = batch[0].pixels if len(batch) == 1 else np.concatenate([part.pixels for part in batch])
            logits = await loop.run_in_executor(self._thread, self._classify, pixels)
            if len(logits) != len(pixels):
                raise ValueError(f"{len(pixels)} images have {len(logits)} rows of logits")
            self._observe(len(pixels), [started - part.arrived for part in batch], loop.time() - started)
        except Exception as error:
            for part in batch:
                if not part.answer.done():
                    part.answer.set_exception(error)
            return
        start = 0
        for part in batch:
            stop = start + len(part.pixels)
            if not part.answer.done():
                part.answer.set_result(logits[start:stop])
            start = stop
