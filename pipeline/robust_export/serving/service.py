"""The inference service behind both protocols: models, API key, limits on accepted work, inference."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterator, Mapping
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
from robust_export.serving.model_loading import PLATFORMS, LoadedModel
from robust_export.serving.request_error import RequestError
from robust_export.serving.rest_body import ResponseTensor
from robust_export.serving.settings import Settings
from robust_export.serving.tensors import (
    IMAGE,
    PIXELS,
    InferenceRequest,
    decode_images,
    read_images,
    read_pixels,
    single_input,
)
from robust_export.utils.version import __version__

LOGITS, PROBABILITIES, LABELS = "logits", "probabilities", "labels"  # outputs; logits by default
OUTPUTS = (LOGITS, PROBABILITIES, LABELS)
VERSION = "1"  # a bundle has one version

log = logging.getLogger(LOGGER)


class InferenceService:
    """Loaded models, and what requests to all of them share."""

    def __init__(self, models: Mapping[str, LoadedModel], settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.models = {name: ServedModel(model, settings, metrics) for name, model in models.items()}
        self.shutting_down = False
        self.buffered_bytes = 0  # sum of the request bodies in memory
        self._key_digest = _digest(settings.api_key)

    def find_model(self, name: str, version: str = "") -> ServedModel:
        """Return a loaded model.

        Raises:
            RequestError: 404 if there is no such model or version.
        """
        model = self.models.get(name)
        if model is None:
            raise RequestError(404, f"no model {one_line(name[:100])} is loaded")
        if version not in ("", VERSION):
            raise RequestError(404, f"{name} has no version {one_line(version[:50])}; it has {VERSION}")
        return model

    def check_api_key(self, authorization: str) -> None:
        """Raise RequestError (401) unless the header holds the API key, in constant time."""
        key = authorization.removeprefix("Bearer ")
        if self.settings.api_key and not hmac.compare_digest(_digest(key), self._key_digest):
            raise RequestError(401, "an API key is required; send it as Authorization: Bearer KEY")

    def check_ready(self) -> None:
        """Raise RequestError (503) if the server is shutting down."""
        if self.shutting_down:
            raise RequestError(503, "the server is shutting down", retry_after=1)

    @contextmanager
    def body_buffer(self) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the size of each piece of a body before it is kept.

        It raises RequestError if the body is too large (413), or the bodies of all requests are (503).
        """
        body_bytes = 0

        def add(size: int) -> None:
            nonlocal body_bytes
            body_bytes += size
            self.buffered_bytes += size
            if body_bytes > self.settings.max_body_bytes:
                raise RequestError(
                    413, f"the body is too large; expected at most {self.settings.max_body} MiB"
                )
            if self.buffered_bytes > self.settings.max_buffered_bytes:
                raise RequestError(503, "the server's memory for request bodies is full", retry_after=1)

        try:
            yield add
        finally:
            self.buffered_bytes -= body_bytes

    def metadata(self) -> dict[str, Any]:
        """Return the V2 server metadata."""
        return {"name": "robust-export", "version": __version__, "extensions": [BINARY_EXTENSION]}

    async def close(self) -> None:
        """Stop the threads of all models."""
        for model in self.models.values():
            await model.close()


class ServedModel:
    """A loaded model with its batcher, its image decoder and its count of accepted requests."""

    def __init__(self, model: LoadedModel, settings: Settings, metrics: Metrics) -> None:
        self.model, self.settings = model, settings
        self.accepted = 0  # requests without a response yet
        self._gauge = metrics.accepted_requests(model.name)
        observe = metrics.batch_observer(model.name)
        self._batcher = Batcher(model.classifier, settings.max_batch, settings.max_delay / 1000, observe)
        self._decoder = ThreadPoolExecutor(1, "decoding")

    def check_queue(self) -> None:
        """Raise RequestError (429) if `settings.queue` requests are waiting."""
        if self.accepted >= self.settings.queue:
            raise RequestError(
                429, f"{self.accepted} requests to {self.model.name} are waiting", retry_after=1
            )

    async def infer(self, request: InferenceRequest) -> list[ResponseTensor]:
        """Return the requested outputs.

        Raises:
            RequestError: 4xx if the request is invalid or the queue is full, 503 after the timeout, 500 if
                the model fails.
        """
        _check_outputs(request)
        self.check_queue()
        self.accepted += 1
        self._gauge.inc()
        try:
            async with asyncio.timeout(self.settings.timeout):
                logits = await self._logits(request)
        except TimeoutError:
            text = f"no result within {self.settings.timeout:g} s: too many requests are waiting"
            raise RequestError(503, text, retry_after=1) from None
        finally:
            self.accepted -= 1
            self._gauge.dec()
        return [self._output(output.name or LOGITS, logits, output.binary) for output in request.outputs]

    async def _logits(self, request: InferenceRequest) -> Logits:
        pixels = await self._pixels(request)
        try:
            return await self._batcher(pixels)
        except Exception as error:
            log.exception("inference failed", extra={"facts": {"model": self.model.name}})
            raise RequestError(500, f"the model failed: {one_line(reason(error))}") from error

    async def _pixels(self, request: InferenceRequest) -> Pixels:
        tensor, input_shape = single_input(request), self.model.input_shape
        max_bytes = self.settings.max_body_bytes
        request.inputs.clear()
        if tensor.name == PIXELS:
            return read_pixels(tensor, input_shape, max_bytes)
        files = read_images(tensor, input_shape, max_bytes)
        del tensor
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoder, decode_images, files, input_shape)

    def _output(self, name: str, logits: Logits, binary: bool) -> ResponseTensor:
        if name == LOGITS:
            return ResponseTensor(name, logits, binary)
        if name == PROBABILITIES:
            return ResponseTensor(name, softmax(logits), binary)
        return ResponseTensor(name, [self.model.labels[i] for i in logits.argmax(1)], binary)

    def metadata(self) -> dict[str, Any]:
        """Return the V2 model metadata.

        `inputs` lists `pixels` only, because V2 clients must send every listed input. The alternative `image`
        is described by the parameter `robust_export.instead`.
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
                {"name": LABELS, "datatype": "BYTES", "shape": [-1]},
            ],
            "parameters": {
                LABELS_PARAMETER: json.dumps(model.labels), "robust_export.instead": json.dumps(image),
                "robust_export.examples": json.dumps(model.examples is not None),
            },
        }  # fmt: skip

    async def close(self) -> None:
        """Stop the model's threads."""
        await self._batcher.close()
        self._decoder.shutdown(wait=False)


def softmax(logits: Logits) -> Logits:
    """Return the probabilities, float32 [N, K], computed in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities: Logits = (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)
    return probabilities


def _check_outputs(request: InferenceRequest) -> None:
    names = [output.name for output in request.outputs]
    if names != [""] and (len(set(names)) < len(names) or not set(names) <= set(OUTPUTS)):
        received = one_line(", ".join(name[:50] for name in names))
        raise RequestError(
            400, f"the requested outputs are {received}; expected some of {', '.join(OUTPUTS)}, each once"
        )


def _digest(key: str) -> bytes:
    """Return the SHA-256 of a key; comparing digests does not reveal the key's length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
