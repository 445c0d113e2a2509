"""Prometheus metrics of this process, or of all workers together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

from robust_export.serving.settings import METRICS_FOLDER_VARIABLE

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Metrics of one process.

    The label `model` takes names of loaded models only, so clients cannot create new time series.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        if METRICS_FOLDER_VARIABLE not in os.environ:
            ProcessCollector(registry=registry)

        def histogram(name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
            return Histogram(f"robust_export_{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = Counter(
            "robust_export_requests", "Requests by HTTP status (gRPC codes are mapped to HTTP).",
            ["protocol", "model", "status"], registry=registry,
        )  # fmt: skip
        self._latency = histogram(
            "request_seconds", "Time from the start of a request to its response.", ["protocol", "model"],
            SECONDS,
        )  # fmt: skip
        self._accepted = Gauge(
            "robust_export_accepted_requests", "Accepted requests without a response yet.", ["model"],
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._batch = histogram("batch_images", "Images per batch.", ["model"], IMAGES)
        self._queue = histogram(
            "queue_seconds", "Time that a request waited for its batch.", ["model"], SECONDS
        )
        self._inference = histogram("inference_seconds", "Duration of a batch.", ["model"], SECONDS)

    def count_request(self, protocol: str, model: str, status: int, seconds: float) -> None:
        """Count a finished request; `model` is empty if it was for no model."""
        self._requests.labels(protocol, model, str(status)).inc()
        if model:
            self._latency.labels(protocol, model).observe(seconds)

    def accepted_requests(self, model: str) -> Any:
        """Return the gauge of a model's accepted requests."""
        return self._accepted.labels(model)

    def batch_observer(self, model: str) -> Callable[[int, Sequence[float], float], None]:
        """Return a function that records a batch: images, seconds that each request waited, duration in s."""
        batch, queue, inference = (
            metric.labels(model) for metric in (self._batch, self._queue, self._inference)
        )

        def observe(images: int, waits: Sequence[float], seconds: float) -> None:
            batch.observe(images)
            inference.observe(seconds)
            for wait in waits:
                queue.observe(wait)

        return observe

    def exposition(self) -> tuple[bytes, str]:
        """Return the Prometheus text format and its content type."""
        registry = self.registry
        if METRICS_FOLDER_VARIABLE in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
