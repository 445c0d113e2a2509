"""The gRPC side of the Open Inference protocol."""

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
from robust_export.serving.proto.messages import load_messages
from robust_export.serving.request_error import RequestError
from robust_export.serving.rest_body import ResponseTensor
from robust_export.serving.service import VERSION, InferenceService, log
from robust_export.serving.settings import Settings
from robust_export.serving.tensors import InferenceRequest, RequestedOutput, RequestTensor

SERVICE = "inference.GRPCInferenceService"
MESSAGES = load_messages("open_inference")
STATUS_CODES = {  # by HTTP status
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED, 500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip
METHODS_WITHOUT_KEY = ("ServerLive", "ServerReady")
MESSAGE_OVERHEAD = 1 << 16  # bytes of a message besides its tensors
EXTRA_CALLS = 16  # open at once besides inferences, for example health probes


@dataclass
class _Call:
    """What the log says about a call."""

    id: str
    model: str = ""


Method = Callable[[Any, _Call], Awaitable[Any]]


async def start(service: InferenceService, address: str, *, shared: bool) -> tuple[grpc.aio.Server, int]:
    """Start the gRPC server; return it and its port.

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
            ("grpc.max_receive_message_length", settings.max_body_bytes + MESSAGE_OVERHEAD),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 16 << 10),
        ],
        maximum_concurrent_rpcs=settings.queue * len(service.models) + EXTRA_CALLS,
    )
    handlers = {name: _handler(service, name, method) for name, method in _methods(service).items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
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
        raise InvalidValue(f"cannot read {error.filename}: {error.strerror}") from error
    return grpc.ssl_server_credentials([pair])


def _methods(service: InferenceService) -> dict[str, Method]:
    async def server_live(_: Any, __: _Call) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def server_ready(_: Any, __: _Call) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=not service.shutting_down)

    async def server_metadata(_: Any, __: _Call) -> Any:
        return MESSAGES["ServerMetadataResponse"](**service.metadata())

    async def model_ready(request: Any, call: _Call) -> Any:
        call.model = service.find_model(request.name, request.version).model.name
        return MESSAGES["ModelReadyResponse"](ready=not service.shutting_down)

    async def model_metadata(request: Any, call: _Call) -> Any:
        served = service.find_model(request.name, request.version)
        call.model = served.model.name
        metadata = served.metadata()
        del metadata["parameters"]  # the gRPC message has no such field
        return MESSAGES["ModelMetadataResponse"](**metadata)

    async def model_infer(request: Any, call: _Call) -> Any:
        served = service.find_model(request.model_name, request.model_version)
        call.model = served.model.name
        service.check_ready()
        return _infer_response(call.model, request.id, await served.infer(_inference_request(request)))

    return {
        "ServerLive": server_live, "ServerReady": server_ready, "ServerMetadata": server_metadata,
        "ModelReady": model_ready, "ModelMetadata": model_metadata, "ModelInfer": model_infer,
    }  # fmt: skip


def _handler(service: InferenceService, name: str, method: Method) -> Any:
    """Return the RPC handler of a method: parse the message, run the method, log and count the call."""
    request_class = MESSAGES[f"{name}Request"]

    async def handle(content: bytes, context: grpc.aio.ServicerContext) -> bytes:
        start, status, error_text = time.perf_counter(), 500, ""
        metadata = dict(context.invocation_metadata() or ())
        call = _Call(request_id(_text(metadata.get("x-request-id"))))
        try:
            if name not in METHODS_WITHOUT_KEY:
                service.check_api_key(_text(metadata.get("authorization")))
            response: bytes = (await method(_parse(request_class, content), call)).SerializeToString()
            status = 200
            return response
        except RequestError as error:
            status, error_text = error.status, str(error)
        except asyncio.CancelledError:
            status, error_text = 499, "the client closed the connection"
            raise
        except Exception:
            log.exception("unexpected error", extra={"facts": {"id": call.id, "method": name}})
            error_text = "internal server error; see the server's log"
        finally:
            seconds = time.perf_counter() - start
            service.metrics.count_request("grpc", call.model, status, seconds)
            facts = {"id": call.id, "protocol": "grpc", "method": name, "model": call.model, "status": status}
            facts |= {"milliseconds": round(seconds * 1000, 3)} | (
                {"error": error_text} if error_text else {}
            )
            log.info("request", extra={"facts": facts})
        await context.abort(STATUS_CODES[status], error_text)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(handle)


def _parse(message_class: Any, content: bytes) -> Any:
    try:
        return message_class.FromString(content)
    except DecodeError as error:
        name = message_class.DESCRIPTOR.name
        raise RequestError(400, f"the message is not a valid {name} of the V2 protocol") from error


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _inference_request(message: Any) -> InferenceRequest:
    raw: Sequence[bytes] = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(400, f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs")
    inputs = []
    for number, tensor in enumerate(message.inputs):
        contents = tensor.contents
        items = contents.bytes_contents if tensor.datatype == "BYTES" else contents.fp32_contents
        if raw and tensor.HasField("contents"):
            raise RequestError(400, "an input has contents and raw_input_contents; expected one of them")
        data = raw[number] if raw else None
        inputs.append(RequestTensor(tensor.name, tensor.datatype, tensor.shape, data, items))
    if len(message.id) > 256:
        raise RequestError(400, f"the id has {len(message.id)} characters; expected at most 256")
    outputs = [RequestedOutput(output.name, True) for output in message.outputs]
    return InferenceRequest(inputs, outputs or [RequestedOutput("", True)], message.id)


def _infer_response(model: str, id: str, outputs: Sequence[ResponseTensor]) -> Any:
    entries = [{"name": out.name, "datatype": out.datatype, "shape": out.shape} for out in outputs]
    return MESSAGES["ModelInferResponse"](
        model_name=model, model_version=VERSION, id=id, outputs=entries,
        raw_output_contents=[output.raw() for output in outputs],
    )  # fmt: skip
