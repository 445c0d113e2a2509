"""The gRPC side of the protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from robust_export.errors import InvalidValue, RobustExportError, reason
from robust_export.serving.logs import request_id
from robust_export.serving.messages import SERVICE, message
from robust_export.serving.request_error import Refused
from robust_export.serving.rest_body import Output
from robust_export.serving.service import VERSION, Service, log
from robust_export.serving.settings import Settings
from robust_export.serving.tensors import Given, Query, Wanted

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED, 500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip
OPEN = ("ServerLive", "ServerReady")  # which no key is needed for
SPARE = 1 << 16  # bytes of a message that are not tensors
SPARE_CALLS = 16  # that are open at once and are no inferences, such as probes


@dataclass
class _Call:
    """What a call was, for the log."""

    id: str
    model: str = ""


Answer = Callable[[Any, _Call], Awaitable[Any]]


async def start(service: Service, address: str, *, shared: bool) -> tuple[grpc.aio.Server, int]:
    """Start to listen; return the server and its port.

    Args:
        address: host:port; port 0 takes a free one.
        shared: several processes listen on the port.

    Raises:
        RobustExportError: if it cannot listen there.
    """
    settings = service.settings
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_receive_message_length", settings.body_bytes + SPARE),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 16 << 10),
        ],
        maximum_concurrent_rpcs=settings.queue * len(service.models) + SPARE_CALLS,
    )
    methods = {name: _handler(service, name, answer) for name, answer in _answers(service).items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    try:
        if settings.tls:
            port = server.add_secure_port(address, _credentials(settings))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise RobustExportError(
            f"gRPC cannot listen on {address}: {reason(error)}; choose another --grpc-port, or --no-grpc"
        ) from error
    await server.start()
    return server, port


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    try:
        pair = Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes()
    except OSError as error:
        raise InvalidValue(f"{error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_server_credentials([pair])


def _answers(service: Service) -> dict[str, Answer]:
    async def server_live(_: Any, __: _Call) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def server_ready(_: Any, __: _Call) -> Any:
        return message("ServerReadyResponse")(ready=not service.ending)

    async def server_metadata(_: Any, __: _Call) -> Any:
        return message("ServerMetadataResponse")(**service.metadata())

    async def model_ready(asked: Any, call: _Call) -> Any:
        call.model = service.find(asked.name, asked.version).model.name
        return message("ModelReadyResponse")(ready=not service.ending)

    async def model_metadata(asked: Any, call: _Call) -> Any:
        served = service.find(asked.name, asked.version)
        call.model = served.model.name
        facts = served.metadata()
        del facts["parameters"]  # for which gRPC has no field
        return message("ModelMetadataResponse")(**facts)

    async def model_infer(asked: Any, call: _Call) -> Any:
        served = service.find(asked.model_name, asked.model_version)
        call.model = served.model.name
        service.check_ready()
        return _answer(call.model, asked.id, await served.infer(_query(asked)))

    return {
        "ServerLive": server_live, "ServerReady": server_ready, "ServerMetadata": server_metadata,
        "ModelReady": model_ready, "ModelMetadata": model_metadata, "ModelInfer": model_infer,
    }  # fmt: skip


def _handler(service: Service, name: str, answer: Answer) -> Any:
    """Return what runs a method: reads the message, answers or refuses, logs and counts."""
    request = message(f"{name}Request")

    async def handle(content: bytes, context: grpc.aio.ServicerContext) -> bytes:
        started, status, refused = time.perf_counter(), 500, ""
        metadata = dict(context.invocation_metadata() or ())
        call = _Call(request_id(_text(metadata.get("x-request-id"))))
        try:
            if name not in OPEN:
                service.admit(_text(metadata.get("authorization")))
            reply: bytes = (await answer(_parsed(request, content), call)).SerializeToString()
            status = 200
            return reply
        except Refused as error:
            status, refused = error.status, str(error)
        except asyncio.CancelledError:
            status, refused = 499, "the client went away"
            raise
        except Exception:
            log.exception("a call failed", extra={"facts": {"id": call.id, "method": name}})
            refused = "the server failed; its log says why"
        finally:
            seconds = time.perf_counter() - started
            service.metrics.answered("grpc", call.model, status, seconds)
            facts = {"id": call.id, "protocol": "grpc", "method": name, "model": call.model, "status": status}
            facts |= {"milliseconds": round(seconds * 1000, 3)} | ({"error": refused} if refused else {})
            log.info("request", extra={"facts": facts})
        await context.abort(CODES[status], refused)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(handle)


def _parsed(kind: Any, content: bytes) -> Any:
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise Refused(400, "the message cannot be read as one of the V2 protocol") from error


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _query(asked: Any) -> Query:
    raw: Sequence[bytes] = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise Refused(400, f"raw_input_contents has {len(raw)} entries for {len(asked.inputs)} inputs")
    inputs = []
    for number, tensor in enumerate(asked.inputs):
        contents = tensor.contents
        items = contents.bytes_contents if tensor.datatype == "BYTES" else contents.fp32_contents
        if raw and tensor.HasField("contents"):
            raise Refused(400, "an input has contents beside raw_input_contents; expected one of them")
        given = Given(tensor.name, tensor.datatype, tensor.shape, raw[number] if raw else None, items)
        inputs.append(given)
    if len(asked.id) > 256:
        raise Refused(400, f"the id has {len(asked.id)} characters; expected at most 256")
    return Query(inputs, [Wanted(out.name, True) for out in asked.outputs] or [Wanted("", True)], asked.id)


def _answer(model: str, id: str, outputs: Sequence[Output]) -> Any:
    entries = [{"name": out.name, "datatype": out.datatype, "shape": out.shape} for out in outputs]
    return message("ModelInferResponse")(
        model_name=model, model_version=VERSION, id=id, outputs=entries,
        raw_output_contents=[out.raw() for out in outputs],
    )  # fmt: skip
