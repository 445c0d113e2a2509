"""Dynamic batching: requests that arrive together run as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from robust_export.runtimes.classifier import Logits, Pixels

Observe = Callable[[int, Sequence[float], float], None]  # images, seconds each part waited, duration in s


@dataclass(frozen=True)
class _Part:
    """At most `max_batch` images of one request."""

    pixels: Pixels
    logits: asyncio.Future[Logits]
    arrival: float  # s, time of the event loop


class Batcher:
    """Runs a classifier in its own thread, one batch at a time, first come first served.

    A batch starts when it is full or its first request has waited for `max_delay`. Requests that arrive while
    a batch runs form the next one. A request of more than `max_batch` images is split. The caller limits the
    queue.

    Args:
        classify: maps pixels [N, C, H, W] to logits [N, K]; called in the thread.
        max_batch: images.
        max_delay: seconds.
        observe: called after each batch.
    """

    def __init__(
        self, classify: Callable[[Pixels], Logits], max_batch: int, max_delay: float, observe: Observe
    ) -> None:
        self._classify, self._observe = classify, observe
        self._max_batch, self._max_delay = max_batch, max_delay
        self._queue: deque[_Part] = deque()
        self._queued_images = 0
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "inference")
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, pixels: Pixels) -> Logits:
        """Return the logits of N >= 1 images.

        Raises:
            Exception: what the classifier raised; every request of the batch gets it.
        """
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        if len(pixels) <= self._max_batch:
            return await self._enqueue(pixels)
        starts = range(0, len(pixels), self._max_batch)
        parts = [self._enqueue(pixels[start : start + self._max_batch]) for start in starts]
        return np.concatenate(await asyncio.gather(*parts))

    async def close(self) -> None:
        """Stop the thread. Requests still in the queue are never answered."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False)

    def _enqueue(self, pixels: Pixels) -> asyncio.Future[Logits]:
        loop = asyncio.get_running_loop()
        part = _Part(pixels, loop.create_future(), loop.time())
        self._queue.append(part)
        self._queued_images += len(pixels)
        self._arrival.set()
        return part.logits

    async def _run(self) -> None:
        while True:
            await self._wait_for_batch()
            batch = self._next_batch()
            if batch:
                await self._run_batch(batch)

    async def _wait_for_batch(self) -> None:
        """Wait until a batch is full or its first request has waited for `max_delay`."""
        loop = asyncio.get_running_loop()
        while not self._queue:
            self._arrival.clear()
            await self._arrival.wait()
        deadline = self._queue[0].arrival + self._max_delay
        while self._queued_images < self._max_batch and (remaining := deadline - loop.time()) > 0:
            self._arrival.clear()
            try:
                async with asyncio.timeout(remaining):
                    await self._arrival.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> list[_Part]:
        """Remove one batch from the queue, dropping parts whose request was cancelled."""
        batch: list[_Part] = []
        free = self._max_batch
        while self._queue and len(self._queue[0].pixels) <= free:
            part = self._queue.popleft()
            self._queued_images -= len(part.pixels)
            if not part.logits.done():
                batch.append(part)
                free -= len(part.pixels)
        return batch

    async def _run_batch(self, batch: list[_Part]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            pixels = batch[0].pixels if len(batch) == 1 else np.concatenate([part.pixels for part in batch])
            logits = await loop.run_in_executor(self._thread, self._classify, pixels)
            if len(logits) != len(pixels):
                raise ValueError(f"the model returned {len(logits)} rows of logits for {len(pixels)} images")
            self._observe(len(pixels), [start - part.arrival for part in batch], loop.time() - start)
        except Exception as error:
            for part in batch:
                if not part.logits.done():
                    part.logits.set_exception(error)
            return
        first = 0
        for part in batch:
            last = first + len(part.pixels)
            if not part.logits.done():
                part.logits.set_result(logits[first:last])
            first = last
