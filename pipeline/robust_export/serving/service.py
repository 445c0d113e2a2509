"""What both protocols share: which models there are, how much is accepted, and what an inference is."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from robust_export.errors import reason
from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.open_inference import BINARY_EXTENSION, LABELS_PARAMETER, one_line
from robust_export.serving.batching import Batcher
from robust_export.serving.logs import LOGGER
from robust_export.serving.metrics import Metrics
from robust_export.serving.model_loading import PLATFORMS, Model
from robust_export.serving.request_error import Refused
from robust_export.serving.rest_body import Output
from robust_export.serving.settings import Settings
from robust_export.serving.tensors import IMAGE, PIXELS, Query, decode, read_images, read_pixels, the_input
from robust_export.utils.version import __version__

LOGITS, PROBABILITIES, TEXTS = "logits", "probabilities", "labels"  # the outputs; the first is the default
VERSION = "1"  # of every model: a bundle has one

log = logging.getLogger(LOGGER)


class Service:
    """Answers queries to any of its models."""

    def __init__(self, models: Mapping[str, Model], settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.models = {name: Served(model, settings, metrics) for name, model in models.items()}
        self.ending = False  # accepts nothing any more
        self.held = 0  # bytes of bodies that are here
        self._key = _digest(settings.api_key)

    def find(self, name: str, version: str = "") -> Served:
        """Return a model; names are looked up among those that were loaded, and nowhere else."""
        model = self.models.get(name)
        if model is None or version not in ("", VERSION):
            what = (
                f"no version {one_line(version[:50])} of {name}"
                if model
                else f"no model {one_line(name[:100])}"
            )
            raise Refused(404, f"there is {what} here")
        return model

    def admit(self, authorization: str) -> None:
        """Refuse whoever lacks the key; takes as long whatever is given."""
        given = authorization.removeprefix("Bearer ")
        if self.settings.api_key and not hmac.compare_digest(_digest(given), self._key):
            raise Refused(401, "an API key is needed here, sent as Authorization: Bearer KEY")

    def check_ready(self) -> None:
        """Refuse when the server is about to end."""
        if self.ending:
            raise Refused(503, "the server is about to end", retry_after=1)

    @contextmanager
    def holding(self) -> Iterator[Any]:
        """Give a function that counts the bytes of a body as they come, and refuses too many."""
        mine = 0

        def count(size: int) -> None:
            nonlocal mine
            mine += size
            self.held += size
            if mine > self.settings.body_bytes:
                raise Refused(413, f"the body is too large; expected at most {self.settings.max_body} MiB")
            if self.held > self.settings.held_bytes:
                raise Refused(503, "the server holds as many requests as it has room for", retry_after=1)

        try:
            yield count
        finally:
            self.held -= mine

    def metadata(self) -> dict[str, Any]:
        """Return what V2 says of a server."""
        return {"name": "robust-export", "version": __version__, "extensions": [BINARY_EXTENSION]}

    async def close(self) -> None:
        """End the threads of all models."""
        for model in self.models.values():
            await model.close()


class Served:
    """One model, its batches, and the requests that it has accepted."""

    def __init__(self, model: Model, settings: Settings, metrics: Metrics) -> None:
        self.model, self.settings = model, settings
        self.accepted = 0
        self._waiting = metrics.waiting(model.name)
        observe = metrics.batches(model.name)
        self._batcher = Batcher(model.classifier, settings.max_batch, settings.max_delay / 1000, observe)
        self._decoder = ThreadPoolExecutor(1, "decoding")

    def check_room(self) -> None:
        """Refuse when as many requests are accepted as may be."""
        if self.accepted >= self.settings.queue:
            raise Refused(429, f"{self.accepted} requests to {self.model.name} are waiting", retry_after=1)

    async def infer(self, query: Query) -> list[Output]:
        """Return the outputs that were asked for.

        Raises:
            Refused: if the request is at fault, there are too many, or it takes too long.
        """
        _check_outputs(query)
        self.check_room()
        self.accepted += 1
        self._waiting.inc()
        try:
            async with asyncio.timeout(self.settings.timeout):
                logits = await self._logits(query)
        except TimeoutError:
            text = f"there was no answer within {self.settings.timeout:g} s: too much is waiting"
            raise Refused(503, text, retry_after=1) from None
        finally:
            self.accepted -= 1
            self._waiting.dec()
        return [self._output(wanted.name or LOGITS, logits, wanted.binary) for wanted in query.outputs]

    async def _logits(self, query: Query) -> Logits:
        pixels = await self._pixels(query)
        try:
            return await self._batcher(pixels)
        except Exception as error:
            log.exception("inference failed", extra={"facts": {"model": self.model.name}})
            raise Refused(500, f"the model failed: {one_line(reason(error))}") from error

    async def _pixels(self, query: Query) -> Pixels:
        tensor, plane, limit = the_input(query), self.model.input_shape, self.settings.body_bytes
        query.inputs.clear()
        if tensor.name == PIXELS:
            return read_pixels(tensor, plane, limit)
        files = read_images(tensor, plane, limit)
        del tensor
        return await asyncio.get_running_loop().run_in_executor(self._decoder, decode, files, plane)

    def _output(self, name: str, logits: Logits, binary: bool) -> Output:
        if name == LOGITS:
            return Output(name, logits, binary)
        if name == PROBABILITIES:
            return Output(name, probabilities(logits), binary)
        return Output(name, [self.model.labels[i] for i in logits.argmax(1)], binary)

    def metadata(self) -> dict[str, Any]:
        """Return what V2 says of a model.

        `inputs` has `pixels` alone, since V2 means all that it lists to be sent; `image` stands in the
        parameters.
        """
        model = self.model
        image = {"name": IMAGE, "datatype": "BYTES", "shape": [-1]}
        return {
            "name": model.name,
            "versions": [VERSION],
            "platform": PLATFORMS.get(model.runtime, model.runtime),
            "inputs": [{"name": PIXELS, "datatype": "FP32", "shape": [-1, *model.input_shape]}],
            "outputs": [
                {"name": LOGITS, "datatype": "FP32", "shape": [-1, model.classes]},
                {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, model.classes]},
                {"name": TEXTS, "datatype": "BYTES", "shape": [-1]},
            ],
            "parameters": {
                LABELS_PARAMETER: json.dumps(model.labels), "robust_export.instead": json.dumps(image),
                "robust_export.examples": json.dumps(model.examples is not None),
            },
        }  # fmt: skip

    async def close(self) -> None:
        """End the threads."""
        await self._batcher.close()
        self._decoder.shutdown(wait=False)


def probabilities(logits: Logits) -> Logits:
    """Return softmax(logits), float32 [N, K], computed in float64."""
    exact = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: Logits = (exact / exact.sum(1, keepdims=True)).astype(np.float32)
    return shares


def _check_outputs(query: Query) -> None:
    names = [wanted.name for wanted in query.outputs]
    known = (LOGITS, PROBABILITIES, TEXTS)
    if names != [""] and (len(set(names)) < len(names) or not set(names) <= set(known)):
        found = one_line(", ".join(name[:50] for name in names))
        raise Refused(
            400, f"the outputs asked for are {found}; expected some of {', '.join(known)}, each once"
        )


def _digest(key: str) -> bytes:
    """Return a digest of 32 bytes, so that comparing two tells nothing of their lengths."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
