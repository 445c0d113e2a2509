"""The error that becomes an HTTP or gRPC error response."""

from __future__ import annotations

from robust_export.errors import RobustExportError


class RequestError(RobustExportError):
    """Failure of one request.

    Args:
        status: HTTP status: 4xx if the request is invalid or exceeds a limit, 503 if the server is overloaded
            or shutting down, 500 if the model fails. gRPC maps it to a status code.
        message: what was received and what was expected; sent to the client.
        retry_after: seconds after which the same request may succeed, None if it never will.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
