"""A linear network behind the test server, for the tests of what asks it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_export.runtimes.remote import RemoteClassifier
from tests.runtimes.v2_server import serve

Array = npt.NDArray[np.float32]

PLANE, CLASSES = (3, 4, 5), 7
WEIGHT = np.random.default_rng(0).standard_normal((60, CLASSES)).astype(np.float32)


def model(pixels: Array) -> Array:
    """Return logits of a linear network: each depends on every pixel, so that no permutation passes."""
    return (pixels.reshape(len(pixels), -1).astype(np.float64) @ WEIGHT).astype(np.float32)


def images(n: int) -> Array:
    return np.random.default_rng(n).random((n, *PLANE), dtype=np.float32)


def no_sleep(seconds: float) -> None:
    raise AssertionError(f"there was no reason to wait {seconds} s")


def served(**settings: Any) -> AbstractContextManager[str]:
    return serve(model, plane=PLANE, classes=CLASSES, **settings)


def open_served(base: str, model: str = "net", **settings: Any) -> RemoteClassifier:
    return RemoteClassifier(f"{base}/v2/models/{model}", **{"sleep": no_sleep, **settings})
