"""Errors of the gRPC service: invalid messages, limits, fuzzed messages, used ports."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robust_export.errors import RobustExportError
from robust_export.serving import grpc_service
from robust_export.serving.grpc_service import MESSAGES, SERVICE
from tests.serving.bundles import SHAPE, expected, images
from tests.serving.servers import TIMEOUT, App, Server

ONE = images(1)
CLIENT_ERRORS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
Infer = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def infer(server: Server) -> Iterator[Infer]:
    """Return a function that sends bytes as a ModelInfer request."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        send = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        yield lambda content: send(content, timeout=TIMEOUT)


def request(**changes: Any) -> Any:
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, *SHAPE]} | changes.pop("tensor", {})
    fields = {"model_name": "net", "inputs": [tensor], "raw_input_contents": [ONE.tobytes()]}
    return MESSAGES["ModelInferRequest"](**(fields | changes))


def check_healthy(infer: Infer) -> None:
    response = MESSAGES["ModelInferResponse"].FromString(infer(request().SerializeToString()))
    np.testing.assert_allclose(
        np.frombuffer(response.raw_output_contents[0], "<f4"), expected(ONE)[0], atol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_name": "../net"}, "NOT_FOUND", "no model ../net"),
        ({"model_version": "2"}, "NOT_FOUND", "has no version 2"),
        ({"inputs": []}, "INVALID_ARGUMENT", "raw_input_contents"),
        ({"inputs": [], "raw_input_contents": []}, "INVALID_ARGUMENT", "inputs are none"),
        ({"raw_input_contents": []}, "INVALID_ARGUMENT", "0 elements; expected 192"),
        ({"raw_input_contents": [b""]}, "INVALID_ARGUMENT", "0 bytes of data"),
        ({"raw_input_contents": [ONE.tobytes()] * 2}, "INVALID_ARGUMENT", "2 entries for 1"),
        ({"raw_input_contents": [(ONE * np.nan).tobytes()]}, "INVALID_ARGUMENT", "not in [0, 1]"),
        ({"tensor": {"shape": [2**62, *SHAPE]}}, "INVALID_ARGUMENT", "at most"),
        ({"tensor": {"shape": [-1, *SHAPE]}}, "INVALID_ARGUMENT", "at least one"),
        ({"tensor": {"shape": []}}, "INVALID_ARGUMENT", "expected pixels"),
        ({"tensor": {"datatype": "BYTES"}}, "INVALID_ARGUMENT", "expected pixels FP32"),
        ({"tensor": {"contents": {"fp32_contents": [1.0]}}}, "INVALID_ARGUMENT", "one of them"),
        ({"outputs": [{"name": "features"}]}, "INVALID_ARGUMENT", "features"),
        ({"id": "x" * 1000}, "INVALID_ARGUMENT", "id"),
    ],
)
def test_invalid_message(infer: Infer, changes: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(request(**changes).SerializeToString())
    assert caught.value.code().name == code
    assert words in caught.value.details()
    check_healthy(infer)


def test_large_message_gets_resource_exhausted(infer: Infer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(request(raw_input_contents=[bytes(17 << 20)]).SerializeToString())
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    check_healthy(infer)


def test_compressed_large_message_gets_resource_exhausted(server: Server) -> None:
    content = request(raw_input_contents=[bytes(40 << 20)]).SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options, grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(content, timeout=TIMEOUT)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_unknown_method_gets_unimplemented(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        for method in (f"/{SERVICE}/RepositoryModelLoad", "/other/ModelInfer"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", timeout=TIMEOUT)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@settings(
    max_examples=200, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_fuzzed_messages(infer: Infer, data: st.DataObject) -> None:
    content = bytearray(request().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    error: Any = None
    try:
        infer(bytes(content))
    except grpc.RpcError as caught:
        error = caught
    assert error is None or (error.code() in CLIENT_ERRORS and error.details())
    check_healthy(infer)


def test_used_port_is_an_error(app: App) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        address = f"127.0.0.1:{used.getsockname()[1]}"
        with pytest.raises(RobustExportError, match="--no-grpc"):
            app.loop.run_until_complete(grpc_service.start(app.service, address, shared=False))
