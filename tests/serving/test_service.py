"""What an inference holds while it waits."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robust_export.serving.model_loading import Model
from robust_export.serving.tensors import Given, Query, Wanted
from tests.serving.bundles import PLANE, Array, images
from tests.serving.servers import LONG, App

OUTPUTS = [Wanted("", False)]


class Waiting:
    """A classifier that waits to be let through."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.entered, self.let = inner, threading.Event(), threading.Event()

    def __call__(self, pixels: Array) -> Any:
        self.entered.set()
        assert self.let.wait(LONG)
        return self.inner(pixels)


@pytest.mark.parametrize("n", [1, 3])
def test_what_was_sent_is_not_held_beside_the_pixels(net: Path, n: int) -> None:
    waiting: list[Waiting] = []

    def wrap(model: Model) -> Model:
        waiting.append(Waiting(model.classifier))
        return replace(model, classifier=waiting[0])  # type: ignore[arg-type]

    app = App(net, wrap=wrap)
    items: list[Any] = images(n).ravel().tolist()
    query = Query([Given("pixels", "FP32", [n, *PLANE], items=items)], OUTPUTS)

    async def main() -> None:
        asked = asyncio.create_task(app.service.models["net"].infer(query))
        try:
            assert await asyncio.to_thread(waiting[0].entered.wait, LONG)
            assert sys.getrefcount(items) == 2  # this name, and the argument
        finally:
            waiting[0].let.set()
            await asked

    try:
        app.loop.run_until_complete(main())
    finally:
        app.close()
