"""A TensorRT logger that prints nothing and keeps errors, for our own error messages."""

from __future__ import annotations

import re
import threading
from types import ModuleType
from typing import Any

SOURCE_LOCATION = re.compile(r" In \w+ at /\S+?:\d+")  # in TensorRT's own sources
NO_DRIVER = re.compile(r"cudaError (35|100)\b")  # logged on machines without a GPU beside the real error
PARSER_FRAME = "ModelImporter.cpp"  # the parser's stack frames


def make_logger(trt: ModuleType) -> Any:
    """Return a trt.ILogger with a method `take` that returns a summary of its errors and clears them."""
    severity = trt.ILogger.Severity
    kept_levels = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        """Thread-safe: several threads of a build log at once."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lock = threading.Lock()
            self.errors: list[str] = []

        def log(self, level: Any, text: str) -> None:
            if level in kept_levels:
                with self.lock:
                    self.errors.append(text)

        def take(self) -> str:
            with self.lock:
                errors, self.errors = self.errors, []
            return summary(errors)

    return Logger()


def summary(errors: list[str]) -> str:
    """Return the last error of Sparta's plugin and the last error; driver errors only if alone."""
    texts = [re.sub(r"\s+", " ", SOURCE_LOCATION.sub("", text)).strip() for text in errors]
    texts = [text for text in texts if not text.startswith(PARSER_FRAME)] or texts
    texts = [text for text in texts if not NO_DRIVER.search(text)] or texts
    ours = [text for text in texts if text.startswith("Sparta's plugin:")]
    return "; ".join(dict.fromkeys([*ours[-1:], *texts[-1:]]))
