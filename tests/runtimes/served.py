"""A linear network on the test server, for the tests of `RemoteClassifier`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.runtimes.remote import RemoteClassifier
from tests.runtimes.v2_server import serve

Array = npt.NDArray[np.float32]

INPUT_SHAPE, CLASSES = (3, 4, 5), 7
WEIGHT = np.random.default_rng(0).standard_normal((60, CLASSES)).astype(np.float32)


def model(pixels: Array) -> Array:
    """Return the logits of a linear network; each depends on every pixel, so permutations are detected."""
    return (pixels.reshape(len(pixels), -1).astype(np.float64) @ WEIGHT).astype(np.float32)


def images(n: int) -> Array:
    return np.random.default_rng(n).random((n, *INPUT_SHAPE), dtype=np.float32)


def no_sleep(seconds: float) -> None:
    raise AssertionError(f"unexpected wait of {seconds} s")


def served(**settings: Any) -> AbstractContextManager[str]:
    return serve(model, input_shape=INPUT_SHAPE, classes=CLASSES, **settings)


def open_served(base: str, model: str = "net", **settings: Any) -> RemoteClassifier:
    return RemoteClassifier(f"{base}/v2/models/{model}", **{"sleep": no_sleep, **settings})
