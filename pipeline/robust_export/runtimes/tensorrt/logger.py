"""A logger that keeps what TensorRT says is wrong, so that our errors can quote it; it prints nothing."""

from __future__ import annotations

import re
import threading
from types import ModuleType
from typing import Any

PLACE = re.compile(r" In \w+ at /\S+?:\d+")  # where in TensorRT's own source
NO_DRIVER = re.compile(r"cudaError (35|100)\b")  # on a machine without a GPU, beside the error that matters


def make_logger(trt: ModuleType) -> Any:
    """Return a trt.ILogger; `take` returns a summary of its errors and forgets them."""
    severity = trt.ILogger.Severity
    worst = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        """Threads of a build log at once."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lock = threading.Lock()
            self.errors: list[str] = []

        def log(self, level: Any, text: str) -> None:
            if level in worst:
                with self.lock:
                    self.errors.append(text)

        def take(self) -> str:
            with self.lock:
                errors, self.errors = self.errors, []
            return summary(errors)

    return Logger()


def summary(errors: list[str]) -> str:
    """Return what matters of logged errors: the plugin's own and the last; least that there is no driver."""
    said = [re.sub(r"\s+", " ", PLACE.sub("", text)).strip() for text in errors]
    said = [text for text in said if not text.startswith("ModelImporter.cpp")] or said  # the parser's frames
    said = [text for text in said if not NO_DRIVER.search(text)] or said
    own = [text for text in said if text.startswith("Sparta's plugin:")]
    return "; ".join(dict.fromkeys([*own[-1:], *said[-1:]]))
