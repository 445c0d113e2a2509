"""What a Triton repository may be told, with units, ranges and defaults."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from robust_export.recipe.schema import STRICT, Count, Natural, NonNegative, Positive

Device = Literal["auto", "cpu", "gpu"]
IN_CONTAINER = re.compile(r"/[^\s,;\"\\]*")  # a path that a server flag can hold


@dataclass(frozen=True, config=STRICT)
class TritonSettings:
    """How Triton is to run a model."""

    max_batch: Natural = 0  # images of one batch; 0 takes the engine's largest, 32 for ONNX
    preferred: tuple[Count, ...] = ()  # sizes that a batch had better have; none takes the defaults
    max_delay: Annotated[NonNegative, Field(le=1000)] = 2.0  # ms that a request waits for others to join it
    queue: Natural = 128  # requests that wait at once, more are refused; 0 for as many as come
    timeout: Positive = 30.0  # s that a request may wait; after that it is refused
    instances: Count = 1  # of the model, on each GPU or on the CPUs
    device: Device = "auto"  # auto: the GPU for engines, the CPU for ONNX files
    gpus: tuple[Natural, ...] = ()  # numbers of the GPUs; none for all
    models: str = "/models"  # where the server sees the repository
    plugin: str = "/plugins/libsparta_trt.so"  # where it sees TensorRT's plugin
    op_library: str = ""  # where it sees ONNX Runtime's custom operator; the function body runs without

    def __post_init__(self) -> None:
        for name in ("models", "plugin", "op_library"):
            path = getattr(self, name)
            if path and not IN_CONTAINER.fullmatch(path):
                raise ValueError(
                    f"{name} is {path!r}; expected an absolute path on the server, without spaces, quotes, "
                    "commas and semicolons"
                )
        if self.gpus and self.device == "cpu":
            raise ValueError("gpus were given for the CPU: leave out one of the two")
