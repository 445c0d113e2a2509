"""Logging as JSON lines on standard error."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from datetime import UTC, datetime

LOGGER = "robust_export.serving"
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (UTC), level, event, items of `extra={"facts": ...}`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line. JSON escapes control characters that a client may have sent."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str) -> None:
    """Write the log of this process to standard error as JSON lines; libraries log warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, LEVELS[level]), force=True)
    logging.getLogger(LOGGER).setLevel(LEVELS[level])


def request_id(header: str | None) -> str:
    """Return the client's request id if it is short and plain, otherwise a new one."""
    if header is not None and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", header):
        return header
    return uuid.uuid4().hex
