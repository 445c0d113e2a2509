"""What gRPC refuses, and a fuzzer of its messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robust_export.serving.messages import MESSAGES, SERVICE, message
from tests.serving.bundles import PLANE, expected, images
from tests.serving.servers import LONG, Server

ONE = images(1)
FINE = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
Ask = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def ask(server: Server) -> Iterator[Ask]:
    """Sends bytes as a ModelInfer request."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        send = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        yield lambda content: send(content, timeout=LONG)


def request(**changes: Any) -> Any:
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, *PLANE]} | changes.pop("tensor", {})
    fields = {"model_name": "net", "inputs": [tensor], "raw_input_contents": [ONE.tobytes()]}
    return message("ModelInferRequest")(**(fields | changes))


def healthy(ask: Ask) -> None:
    reply = message("ModelInferResponse").FromString(ask(request().SerializeToString()))
    np.testing.assert_allclose(
        np.frombuffer(reply.raw_output_contents[0], "<f4"), expected(ONE)[0], atol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_name": "../net"}, "NOT_FOUND", "no model ../net"),
        ({"model_version": "2"}, "NOT_FOUND", "no version 2"),
        ({"inputs": []}, "INVALID_ARGUMENT", "raw_input_contents"),
        ({"inputs": [], "raw_input_contents": []}, "INVALID_ARGUMENT", "inputs are none"),
        ({"raw_input_contents": []}, "INVALID_ARGUMENT", "0 elements; expected 192"),
        ({"raw_input_contents": [b""]}, "INVALID_ARGUMENT", "0 bytes of data"),
        ({"raw_input_contents": [ONE.tobytes()] * 2}, "INVALID_ARGUMENT", "2 entries for 1"),
        ({"raw_input_contents": [(ONE * np.nan).tobytes()]}, "INVALID_ARGUMENT", "not in [0, 1]"),
        ({"tensor": {"shape": [2**62, *PLANE]}}, "INVALID_ARGUMENT", "at most"),
        ({"tensor": {"shape": [-1, *PLANE]}}, "INVALID_ARGUMENT", "at least one"),
        ({"tensor": {"shape": []}}, "INVALID_ARGUMENT", "expected pixels"),
        ({"tensor": {"datatype": "BYTES"}}, "INVALID_ARGUMENT", "expected pixels FP32"),
        ({"tensor": {"contents": {"fp32_contents": [1.0]}}}, "INVALID_ARGUMENT", "one of them"),
        ({"outputs": [{"name": "features"}]}, "INVALID_ARGUMENT", "features"),
        ({"id": "x" * 1000}, "INVALID_ARGUMENT", "id"),
    ],
)
def test_what_is_refused(ask: Ask, changes: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(request(**changes).SerializeToString())
    assert caught.value.code().name == code
    assert words in caught.value.details()
    healthy(ask)


def test_a_message_beyond_the_limit(ask: Ask) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(request(raw_input_contents=[bytes(17 << 20)]).SerializeToString())
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    healthy(ask)


def test_a_message_that_is_small_while_it_is_packed(server: Server) -> None:
    content = request(raw_input_contents=[bytes(40 << 20)]).SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options, grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(content, timeout=LONG)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_methods_that_are_none(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        for method in (f"/{SERVICE}/RepositoryModelLoad", "/other/ModelInfer"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", timeout=LONG)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@settings(
    max_examples=200, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_fuzzed_messages(ask: Ask, data: st.DataObject) -> None:
    found = bytearray(request().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(found)))
        found[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    refusal: Any = None
    try:
        ask(bytes(found))
    except grpc.RpcError as error:
        refusal = error
    assert refusal is None or (refusal.code() in FINE and refusal.details())
    healthy(ask)


def test_every_message_has_its_fields() -> None:
    for name, fields in MESSAGES.items():
        found = message(name).DESCRIPTOR.fields
        assert len(found) == len([field for field in fields.split(",") if field])
