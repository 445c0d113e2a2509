"""What the server may be told, with units, ranges and defaults."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_export.recipe.schema import STRICT, Count, Natural, NonNegative, Positive, Precision

MIB = 1 << 20
COUNTS = (
    "PROMETHEUS_MULTIPROC_DIR"  # in the environment of workers: the folder where they keep what they count
)
FLOOR = 64  # requests of the largest size that can be waiting at once, whatever else is

Port = Annotated[int, Field(ge=0, le=65535)]
OnReady = Callable[[dict[str, Any]], None]  # told where the server listens, and what it serves
LogLevel = Literal["info", "warning", "error"]


@dataclass(frozen=True, config=STRICT)
class Settings:
    """One server: its models, where it listens, and its limits."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]  # bundles, by name or path
    host: str = "127.0.0.1"
    port: Port = 8000  # of REST; 0 takes a free one
    grpc_port: Port = 8001  # the same of gRPC
    grpc: bool = True
    runtime: str = "auto"  # a TensorRT engine for this GPU where the bundle has one, ONNX Runtime otherwise
    precision: Precision = "fp32"  # which of the bundle's ONNX files
    workers: Count = 1  # processes
    threads: Natural = 0  # of one inference; 0 shares the cores among the workers
    max_batch: Count = 32  # images
    max_delay: Annotated[NonNegative, Field(le=1000)] = 2.0  # ms that a request waits for others to join it
    queue: Count = 128  # requests of one model that are accepted and unanswered; more are refused
    max_body: Annotated[int, Field(ge=1, le=1024)] = 16  # MiB of one request
    connections: Count = 1024  # open at once, of REST
    timeout: Positive = 30.0  # s: to send a request, to wait for its turn, to take the answer; to shut down
    tls_cert: str = ""  # PEM files; both or neither
    tls_key: str = ""
    api_key: str = field(default="", repr=False)  # what clients must send; nothing asks for none
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("TLS needs both a certificate and its key: give --tls-cert and --tls-key")
        if not re.fullmatch("[!-~]*", self.api_key):
            raise ValueError("an API key is printable ASCII without spaces")
        if self.grpc and self.port == self.grpc_port != 0:
            raise ValueError(f"REST and gRPC cannot share port {self.port}: give another --grpc-port")

    @property
    def body_bytes(self) -> int:
        """The largest request, as it is sent and as float32 pixels."""
        return self.max_body * MIB

    @property
    def held_bytes(self) -> int:
        """The bytes of all requests that are held at once."""
        return FLOOR * self.body_bytes

    @property
    def tls(self) -> bool:
        return bool(self.tls_cert)
