"""The REST side of the protocol, as an ASGI application."""

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
from robust_export.serving.request_error import Refused
from robust_export.serving.rest_body import read_request, write_answer
from robust_export.serving.service import VERSION, Served, Service, log
from robust_export.serving.ui.page import server_page

OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # which no key is needed for; the page asks for it
ID = "X-Request-Id"
GUARDS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


def application(service: Service) -> Starlette:
    """Return the application that answers for the service."""
    handlers: dict[Any, Any] = {
        Refused: _refused, HTTPException: _http, ClientDisconnect: _gone, Exception: _failed,
    }  # fmt: skip
    middleware = [Middleware(_Front, service=service)]
    app = Starlette(routes=_routes(service), middleware=middleware, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def _routes(service: Service) -> list[Route]:
    def found(request: Request) -> Served:
        names = request.path_params
        return service.find(names["model"], names.get("version", ""))

    async def infer(request: Request) -> Response:
        model = found(request)
        service.check_ready()
        model.check_room()
        if "content-encoding" in request.headers:
            raise Refused(415, "the body has a Content-Encoding; expected none")
        with service.holding() as count:
            body = await _body(request, count, service.settings.body_bytes)
            query = read_request(body, request.headers.get(HEADER_LENGTH))
            del body
            request.scope["facts"]["inputs"] = [str(tensor) for tensor in query.inputs]
            outputs = await model.infer(query)
        content, headers = write_answer(model.model.name, VERSION, query.id, outputs)
        return Response(content, headers=headers)

    async def metadata(request: Request) -> Response:
        return JSONResponse(found(request).metadata())

    async def model_ready(request: Request) -> Response:
        model = found(request)
        service.check_ready()
        return JSONResponse({"name": model.model.name, "ready": True})

    async def server(_: Request) -> Response:
        return JSONResponse(service.metadata())

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        service.check_ready()
        return JSONResponse({"ready": True})

    async def models(_: Request) -> Response:
        return JSONResponse({"models": list(service.models)})

    async def page(_: Request) -> Response:
        shown = server_page()
        return HTMLResponse(shown.html, headers={**GUARDS, "Content-Security-Policy": shown.policy})

    async def examples(request: Request) -> Response:
        model = found(request).model
        if model.examples is None:
            raise Refused(404, f"{model.name} has no attacks to show; `robust-export page` makes them")
        return Response(model.examples, headers=GUARDS, media_type="application/json")

    async def metrics(_: Request) -> Response:
        content, kind = service.metrics.exposition()
        return Response(content, headers={"Content-Type": kind})

    async def description(_: Request) -> Response:
        return JSONResponse(openapi(list(service.models.values())))

    routes = [Route("/examples/{model}", examples, methods=["GET"])]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(f"{path}/infer", infer, methods=["POST"]),
            Route(path, metadata, methods=["GET"]),
            Route(f"{path}/ready", model_ready, methods=["GET"]),
        ]
    plain: dict[str, Callable[[Request], Any]] = {
        "/v2": server, "/v2/health/live": live, "/v2/health/ready": ready, "/v2/models": models,
        "/metrics": metrics, "/openapi.json": description, "/": page,
    }  # fmt: skip
    return routes + [Route(path, endpoint, methods=["GET"]) for path, endpoint in plain.items()]


async def _body(request: Request, count: Callable[[int], None], limit: int) -> bytearray:
    """Return a request's body, which is refused as soon as it is known to be too large."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 19 or int(length) > limit):
        count(limit + 1)
    body = bytearray()
    async for chunk in request.stream():
        count(len(chunk))
        body += chunk
    return body


class _Front:
    """What every request passes: its id, the key, the log and the counts."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, request = time.perf_counter(), Request(scope)
        identity = request_id(request.headers.get(ID))
        scope["facts"] = {}
        noted = False

        def note(status: int) -> None:
            nonlocal noted
            if not noted:
                self._note(scope, identity, status, time.perf_counter() - started)
            noted = True

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", identity.encode()))
                note(message["status"])  # so that it is counted when the client has its answer
            await send(message)

        try:
            if scope["path"] not in OPEN:
                self._service.admit(request.headers.get("authorization", ""))
            await self._app(scope, receive, answer)
        except Refused as refused:  # by the key; what is refused later is answered inside
            await _refused(request, refused)(scope, receive, answer)
        finally:
            note(500)

    def _note(self, scope: Scope, identity: str, status: int, seconds: float) -> None:
        name = str(scope.get("path_params", {}).get("model", ""))
        name = name if name in self._service.models else ""
        self._service.metrics.answered("rest", name, status, seconds)
        facts = {
            "id": identity, "protocol": "rest", "method": scope["method"], "path": scope["path"][:200],
            "status": status, "milliseconds": round(seconds * 1000, 3), **scope["facts"],
        }  # fmt: skip
        log.info("request", extra={"facts": facts})


def _refused(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    text = str(refused)
    request.scope["facts"]["error"] = text
    return JSONResponse({"error": text}, refused.status, headers)


async def _http(request: Request, error: Exception) -> Response:
    """Answer what there is no route for, or another method."""
    assert isinstance(error, HTTPException)
    what = {404: "there is nothing at this address", 405: "this method is not for this address"}
    text = what.get(error.status_code, error.detail)
    request.scope["facts"]["error"] = text
    return JSONResponse({"error": text}, error.status_code, dict(error.headers or {}))


async def _gone(request: Request, _: Exception) -> Response:
    """Answer nobody, since the client is gone."""
    request.scope["facts"]["error"] = "the client went away"
    return JSONResponse({"error": "the client went away"}, 400)


async def _failed(_: Request, __: Exception) -> Response:
    """Answer a fault of ours, without what it says; the log has it."""
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
