"""The REST side of the Open Inference protocol, the metrics and the web page, as an ASGI application."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from robust_export.runtimes.open_inference import HEADER_LENGTH
from robust_export.serving.logs import request_id
from robust_export.serving.openapi import openapi
from robust_export.serving.request_error import RequestError
from robust_export.serving.rest_body import read_request, write_response
from robust_export.serving.service import VERSION, InferenceService, ServedModel, log
from robust_export.serving.ui.page import server_page

PATHS_WITHOUT_KEY = ("/", "/v2/health/live", "/v2/health/ready")  # the page itself asks for the key
REQUEST_ID = "X-Request-Id"
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip


def application(service: InferenceService) -> Starlette:
    """Return the ASGI application of a service."""
    handlers: dict[Any, Any] = {
        RequestError: _request_error, HTTPException: _http_exception, ClientDisconnect: _client_disconnect,
        Exception: _internal_error,
    }  # fmt: skip
    middleware = [Middleware(_RequestMiddleware, service=service)]
    app = Starlette(routes=_routes(service), middleware=middleware, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def _routes(service: InferenceService) -> list[Route]:
    def find_model(request: Request) -> ServedModel:
        path = request.path_params
        return service.find_model(path["model"], path.get("version", ""))

    async def infer(request: Request) -> Response:
        served = find_model(request)
        service.check_ready()
        served.check_queue()
        if "content-encoding" in request.headers:
            raise RequestError(415, "the body has a Content-Encoding; expected none")
        with service.body_buffer() as add:
            body = await _read_body(request, add, service.settings.max_body_bytes)
            inference = read_request(body, request.headers.get(HEADER_LENGTH))
            del body
            request.scope["facts"]["inputs"] = [str(tensor) for tensor in inference.inputs]
            outputs = await served.infer(inference)
        content, headers = write_response(served.model.name, VERSION, inference.id, outputs)
        return Response(content, headers=headers)

    async def model_metadata(request: Request) -> Response:
        return JSONResponse(find_model(request).metadata())

    async def model_ready(request: Request) -> Response:
        served = find_model(request)
        service.check_ready()
        return JSONResponse({"name": served.model.name, "ready": True})

    async def server_metadata(_: Request) -> Response:
        return JSONResponse(service.metadata())

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        service.check_ready()
        return JSONResponse({"ready": True})

    async def models(_: Request) -> Response:
        return JSONResponse({"models": list(service.models)})

    async def page(_: Request) -> Response:
        content = server_page()
        return HTMLResponse(
            content.html, headers={**SECURITY_HEADERS, "Content-Security-Policy": content.policy}
        )

    async def examples(request: Request) -> Response:
        model = find_model(request).model
        if model.examples is None:
            raise RequestError(
                404, f"{model.name} has no adversarial examples to show; make some with `robust-export page`"
            )
        return Response(model.examples, headers=SECURITY_HEADERS, media_type="application/json")

    async def metrics(_: Request) -> Response:
        content, content_type = service.metrics.exposition()
        return Response(content, headers={"Content-Type": content_type})

    async def description(_: Request) -> Response:
        return JSONResponse(openapi(list(service.models.values())))

    routes = [Route("/examples/{model}", examples, methods=["GET"])]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(f"{path}/infer", infer, methods=["POST"]),
            Route(path, model_metadata, methods=["GET"]),
            Route(f"{path}/ready", model_ready, methods=["GET"]),
        ]
    endpoints: dict[str, Callable[[Request], Any]] = {
        "/v2": server_metadata, "/v2/health/live": live, "/v2/health/ready": ready, "/v2/models": models,
        "/metrics": metrics, "/openapi.json": description, "/": page,
    }  # fmt: skip
    return routes + [Route(path, endpoint, methods=["GET"]) for path, endpoint in endpoints.items()]


async def _read_body(request: Request, add: Callable[[int], None], max_bytes: int) -> bytearray:
    """Return the body; a Content-Length beyond the limit is an error before anything is read."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 19 or int(length) > max_bytes):
        add(max_bytes + 1)
    body = bytearray()
    async for chunk in request.stream():
        add(len(chunk))
        body += chunk
    return body


class _RequestMiddleware:
    """Checks the API key, adds the request id to the response, logs and counts every request."""

    def __init__(self, app: ASGIApp, service: InferenceService) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, request = time.perf_counter(), Request(scope)
        identifier = request_id(request.headers.get(REQUEST_ID))
        scope["facts"] = {}
        recorded = False

        def record(status: int) -> None:
            nonlocal recorded
            if not recorded:
                self._record(scope, identifier, status, time.perf_counter() - start)
            recorded = True

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", identifier.encode()))
                record(message["status"])  # before the client can see the response
            await send(message)

        try:
            if scope["path"] not in PATHS_WITHOUT_KEY:
                self._service.check_api_key(request.headers.get("authorization", ""))
            await self._app(scope, receive, send_with_id)
        except RequestError as error:  # from check_api_key; the application handles its own
            await _request_error(request, error)(scope, receive, send_with_id)
        finally:
            record(500)

    def _record(self, scope: Scope, id: str, status: int, seconds: float) -> None:
        model = str(scope.get("path_params", {}).get("model", ""))
        model = model if model in self._service.models else ""
        self._service.metrics.count_request("rest", model, status, seconds)
        facts = {
            "id": id, "protocol": "rest", "method": scope["method"], "path": scope["path"][:200],
            "status": status, "milliseconds": round(seconds * 1000, 3), **scope["facts"],
        }  # fmt: skip
        log.info("request", extra={"facts": facts})


def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    text = str(error)
    request.scope["facts"]["error"] = text
    return JSONResponse({"error": text}, error.status, headers)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Answer a path without a route, or a method that the route does not have."""
    assert isinstance(error, HTTPException)
    texts = {404: "no such path", 405: "this path does not have this method"}
    text = texts.get(error.status_code, error.detail)
    request.scope["facts"]["error"] = text
    return JSONResponse({"error": text}, error.status_code, dict(error.headers or {}))


async def _client_disconnect(request: Request, _: Exception) -> Response:
    """Return the response of a request whose client closed the connection; it is logged, never received."""
    request.scope["facts"]["error"] = "the client closed the connection"
    return JSONResponse({"error": "the client closed the connection"}, 400)


async def _internal_error(_: Request, __: Exception) -> Response:
    """Answer an unexpected exception without its text, which may hold internals; the log has it."""
    return JSONResponse({"error": "internal server error; see the server's log"}, 500)
