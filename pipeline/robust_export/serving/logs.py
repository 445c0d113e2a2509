"""Logs for machines: a JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from datetime import UTC, datetime

LOGGER = "robust_export.serving"


class JsonLines(logging.Formatter):
    """Writes time (UTC), level, event, what `extra={"facts": {...}}` has, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; whatever a client sent is escaped in it."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(level: str) -> None:
    """Send everything of this process to standard error, in lines of JSON; of libraries, warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, _number(level)), force=True)
    logging.getLogger(LOGGER).setLevel(_number(level))


def request_id(given: str | None) -> str:
    """Return a client's own id of a request, where it is short and plain, or a new one."""
    if given is not None and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given):
        return given
    return uuid.uuid4().hex


def _number(level: str) -> int:
    return {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[level]
