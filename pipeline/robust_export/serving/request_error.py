"""What a client gets instead of an answer."""

from __future__ import annotations

from robust_export.errors import RobustExportError


class Refused(RobustExportError):
    """A request that is not answered, with the HTTP status that says why.

    Args:
        status: 400 to 499 where the request is at fault or there is too much of it, 503 where the server is
            about to end or too slow, 500 where the model fails.
        message: what was received and what was expected; clients see it.
        retry_after: seconds after which the same request may be answered, None where it never will be.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
