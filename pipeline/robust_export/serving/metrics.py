"""What Prometheus reads: requests, latency, batches, queues, of this process or of all workers together."""

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

from robust_export.serving.settings import COUNTS

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counts of one process. Labels have names of loaded models only, so that no client adds series."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        if COUNTS not in os.environ:
            ProcessCollector(registry=registry)

        def histogram(name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
            return Histogram(f"robust_export_{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = Counter(
            "robust_export_requests", "Requests by their status: HTTP's, or gRPC's as HTTP's.",
            ["protocol", "model", "status"], registry=registry,
        )  # fmt: skip
        self._latency = histogram(
            "request_seconds", "From a request's first bytes to its answer.", ["protocol", "model"], SECONDS
        )
        self._queued = Gauge(
            "robust_export_accepted_requests", "Requests that are accepted and unanswered.", ["model"],
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._batch = histogram("batch_images", "Images of a batch that ran.", ["model"], IMAGES)
        self._waited = histogram("queue_seconds", "What a request waited for its batch.", ["model"], SECONDS)
        self._ran = histogram("inference_seconds", "What a batch took.", ["model"], SECONDS)

    def answered(self, protocol: str, model: str, status: int, seconds: float) -> None:
        """Count a request; `model` is empty where it was about none."""
        self._requests.labels(protocol, model, str(status)).inc()
        if model:
            self._latency.labels(protocol, model).observe(seconds)

    def waiting(self, model: str) -> Any:
        """Return the gauge of a model's accepted requests."""
        return self._queued.labels(model)

    def batches(self, model: str) -> Callable[[int, Sequence[float], float], None]:
        """Return what counts the batches of a model."""
        batch, waited, ran = (metric.labels(model) for metric in (self._batch, self._waited, self._ran))

        def observe(images: int, waits: Sequence[float], seconds: float) -> None:
            batch.observe(images)
            ran.observe(seconds)
            for wait in waits:
                waited.observe(wait)

        return observe

    def exposition(self) -> tuple[bytes, str]:
        """Return the text that Prometheus reads, and its content type."""
        registry = self.registry
        if COUNTS in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
