"""Settings of `robust-export serve`: units, ranges and defaults."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_export.recipe.schema import STRICT, Count, Natural, NonNegative, Positive, Precision

MIB = 1 << 20
METRICS_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # set for workers: where prometheus_client shares counts
MAX_BUFFERED_REQUESTS = 64  # requests of the largest size whose bodies fit in memory at the same time

Port = Annotated[int, Field(ge=0, le=65535)]
OnReady = Callable[[dict[str, Any]], None]  # called with the addresses and the models
LogLevel = Literal["info", "warning", "error"]


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Models, addresses and limits of one server."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]  # bundles, by name or path
    host: str = "127.0.0.1"
    port: Port = 8000  # REST; 0 takes a free one
    grpc_port: Port = 8001  # gRPC; 0 takes a free one
    grpc: bool = True
    runtime: str = "auto"  # a TensorRT engine built for this GPU if the bundle has one, else ONNX Runtime
    precision: Precision = "fp32"  # selects the bundle's ONNX file or engine
    workers: Count = 1  # processes
    threads: Natural = 0  # per inference; 0 divides the cores among the workers
    max_batch: Count = 32  # images
    max_delay: Annotated[NonNegative, Field(le=1000)] = 2.0  # ms that a request waits for its batch to fill
    queue: Count = 128  # unanswered requests per model; further ones get 429
    max_body: Annotated[int, Field(ge=1, le=1024)] = 16  # MiB per request
    connections: Count = 1024  # open REST connections; further ones get 503
    timeout: Positive = 30.0  # s to send a request, to answer it, to read the response, and to shut down
    tls_cert: str = ""  # PEM files; both or neither
    tls_key: str = ""
    api_key: str = field(default="", repr=False)  # required from clients unless empty
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("TLS needs both a certificate and its key: give --tls-cert and --tls-key")
        if not re.fullmatch("[!-~]*", self.api_key):
            raise ValueError("the API key has spaces or non-ASCII characters; expected printable ASCII only")
        if self.grpc and self.port == self.grpc_port != 0:
            raise ValueError(f"REST and gRPC cannot share port {self.port}: give another --grpc-port")

    @property
    def max_body_bytes(self) -> int:
        """Largest request, both as sent and as decoded float32 pixels."""
        return self.max_body * MIB

    @property
    def max_buffered_bytes(self) -> int:
        """Largest sum of the request bodies in memory."""
        return MAX_BUFFERED_REQUESTS * self.max_body_bytes

    @property
    def tls(self) -> bool:
        return bool(self.tls_cert)
