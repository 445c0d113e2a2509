"""Settings of `robust-export triton`: units, ranges and defaults."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_export.recipe.schema import STRICT, Count, Natural, NonNegative, Positive

Device = Literal["auto", "cpu", "gpu"]
SERVER_PATH = re.compile(r"/[^\s,;\"\\]*")  # can be part of a tritonserver flag


@dataclass(frozen=True, config=STRICT)
class TritonSettings:
    """Batching, queueing and placement of a model, and paths as the server sees them."""

    max_batch: Natural = 0  # images; 0: the engine's largest batch, 32 for ONNX files
    preferred: tuple[Count, ...] = ()  # preferred batch sizes; empty: see model_config.preferred_batch_sizes
    max_delay: Annotated[NonNegative, Field(le=1000)] = 2.0  # ms that a request waits for its batch to fill
    queue: Natural = 128  # waiting requests; further ones are rejected; 0: no limit
    timeout: Positive = 30.0  # s that a request may wait before it is rejected
    instances: Count = 1  # of the model, on each GPU or on the CPU
    device: Device = "auto"  # auto: GPU for engines, CPU for ONNX files
    gpus: tuple[Natural, ...] = ()  # GPU indices; empty: all
    models: str = "/models"  # the model repository
    plugin: str = "/plugins/libsparta_trt.so"  # TensorRT plugin
    op_library: str = ""  # ONNX Runtime custom operator; empty: the function body runs

    def __post_init__(self) -> None:
        for name in ("models", "plugin", "op_library"):
            path = getattr(self, name)
            if path and not SERVER_PATH.fullmatch(path):
                raise ValueError(
                    f"{name} is {path!r}; expected an absolute path on the server, without spaces, quotes, "
                    "commas and semicolons"
                )
        if self.gpus and self.device == "cpu":
            raise ValueError("gpus and device cpu exclude each other: leave out one of them")
