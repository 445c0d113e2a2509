"""Limits of the service (queue, memory) and the memory of a waiting request, with a model that blocks."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robust_export.serving.model_loading import LoadedModel
from robust_export.serving.tensors import InferenceRequest, RequestedOutput, RequestTensor
from tests.serving import request_bodies
from tests.serving.bundles import SHAPE, Array, expected, images
from tests.serving.servers import TIMEOUT, App, Response

INFER = "/v2/models/net/infer"


class Blocking:
    """A classifier that blocks until `release` is set."""

    def __init__(self, classifier: Any) -> None:
        self.classifier, self.entered, self.release = classifier, threading.Event(), threading.Event()

    def __call__(self, pixels: Array) -> Any:
        self.entered.set()
        assert self.release.wait(TIMEOUT)
        return self.classifier(pixels)


class BlockingApp(App):
    """An application whose model is `Blocking`."""

    def __init__(self, bundle: Path, **settings: Any) -> None:
        self.model: Any = None
        super().__init__(bundle, wrap=self._wrap, **settings)

    def _wrap(self, model: LoadedModel) -> LoadedModel:
        self.model = Blocking(model.classifier)
        return replace(model, classifier=self.model)

    async def infer(self, pixels: Array) -> Response:
        return await self.send("POST", INFER, *request_bodies.as_bytes(pixels))


@pytest.fixture
def blocking_app(net: Path) -> Iterator[Callable[..., BlockingApp]]:
    apps: list[BlockingApp] = []

    def make(**settings: Any) -> BlockingApp:
        apps.append(BlockingApp(net, **settings))
        return apps[-1]

    yield make
    for app in apps:
        app.model.release.set()
        app.close()


@pytest.mark.parametrize("queue", [4, 64])
def test_full_queue_gets_429(blocking_app: Callable[..., BlockingApp], queue: int) -> None:
    app = blocking_app(queue=queue, max_batch=1)

    async def main() -> None:
        requests = [asyncio.create_task(app.infer(images(1, seed=n))) for n in range(queue + 6)]
        for rejected in [await response for response in requests[queue:]]:
            assert rejected.status == 429
            assert "waiting" in rejected.json()["error"]
            assert int(rejected.headers["retry-after"]) > 0
        assert app.service.models["net"].accepted == queue
        app.model.release.set()
        for n, response in enumerate(await asyncio.gather(*requests[:queue])):
            assert response.status == 200
            logits = request_bodies.read(response.content, response.headers)["logits"]
            np.testing.assert_allclose(logits, expected(images(1, seed=n)), rtol=1e-5, atol=1e-4)
        assert (await app.infer(images(1))).status == 200
        assert app.service.models["net"].accepted == 0

    app.loop.run_until_complete(asyncio.wait_for(main(), TIMEOUT))


def test_full_memory_gets_503(
    blocking_app: Callable[..., BlockingApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robust_export.serving.settings.MAX_BUFFERED_REQUESTS", 1)
    app = blocking_app(max_body=1)
    pixels = images(900)  # 0.66 MiB

    async def main() -> None:
        first = asyncio.create_task(app.infer(pixels))
        assert await asyncio.to_thread(app.model.entered.wait, TIMEOUT)
        second = await app.infer(pixels)
        assert second.status == 503
        assert "memory" in second.json()["error"]
        app.model.release.set()
        assert (await first).status == 200
        assert app.service.buffered_bytes == 0
        assert (await app.infer(pixels)).status == 200

    app.loop.run_until_complete(asyncio.wait_for(main(), TIMEOUT))


@pytest.mark.parametrize("n", [1, 3])
def test_waiting_request_holds_its_data_once(blocking_app: Callable[..., BlockingApp], n: int) -> None:
    app = blocking_app()
    items: list[Any] = images(n).ravel().tolist()
    tensor = RequestTensor("pixels", "FP32", [n, *SHAPE], items=items)
    request = InferenceRequest([tensor], [RequestedOutput("", False)])
    del tensor

    async def main() -> None:
        task = asyncio.create_task(app.service.models["net"].infer(request))
        try:
            assert await asyncio.to_thread(app.model.entered.wait, TIMEOUT)
            assert sys.getrefcount(items) == 2  # this name, and the argument
        finally:
            app.model.release.set()
            await task

    app.loop.run_until_complete(main())
