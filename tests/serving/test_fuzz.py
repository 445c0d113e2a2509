"""Fuzzed requests: the response is valid, or a V2 error with status 4xx."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving import request_bodies
from tests.serving.bundles import SHAPE
from tests.serving.request_bodies import HEADER_LENGTH
from tests.serving.servers import App, Response
from tests.serving.test_invalid_requests import (
    INFER,
    ONE,
    binary_request,
    check_healthy,
    image_request,
    json_request,
    noise_image,
    read_error,
)

MANY = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


values = st.one_of(
    st.floats(0, 1, width=32), st.floats(), st.integers(), st.none(), st.booleans(), st.text(max_size=5)
)
anything = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
shapes = st.lists(st.integers() | st.sampled_from([1, 3, 8, 2**31, 2**63, -1]), max_size=6) | st.just(
    [1, *SHAPE]
)
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "shared_memory_region"]), values
)
names = st.sampled_from(["pixels", "image", "logits", ""]) | st.text(max_size=8)
entries = st.fixed_dictionaries(
    {
        "name": names,
        "datatype": st.sampled_from(["FP32", "BYTES", "FP16", "INT64"]) | st.text(max_size=5),
        "shape": shapes | anything,
    },
    optional={
        "data": st.lists(values, max_size=8) | st.just([0.5] * 192) | anything,
        "parameters": parameters | anything,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(entries | anything, max_size=3) | anything},
    optional={
        "id": anything, "parameters": parameters | anything,
        "outputs": anything
        | st.lists(st.fixed_dictionaries({"name": names}, optional={"parameters": parameters})),
    },
)  # fmt: skip


def check_response(response: Response) -> None:
    """Check that a response has non-empty outputs, or is a V2 error with status 4xx."""
    if response.status == 200:
        outputs = request_bodies.read(response.content, response.headers)
        assert all(len(output) for output in outputs.values())
    else:
        assert 400 <= response.status < 500, response.content
        read_error(response)


@MANY
@given(request=requests)
def test_fuzzed_json(app: App, request: dict[str, Any]) -> None:
    check_response(app.request("POST", INFER, json.dumps(request).encode()))
    check_healthy(app)


@MANY
@given(request=requests, tail=st.binary(max_size=900), length=st.integers(-5, 2000) | st.text(max_size=4))
def test_fuzzed_json_with_binary_tensors(app: App, request: dict[str, Any], tail: bytes, length: Any) -> None:
    head = json.dumps(request).encode()
    text = str(len(head)) if length == 0 else str(length).encode("latin-1", "replace").decode("latin-1")
    check_response(app.request("POST", INFER, head + tail, {HEADER_LENGTH: text}))
    check_healthy(app)


@MANY
@given(data=st.data())
def test_fuzzed_bytes(app: App, data: st.DataObject) -> None:
    """Valid requests with a few bytes changed, removed or inserted."""
    body, headers = data.draw(
        st.sampled_from([request_bodies.as_bytes(ONE), (json_request(), {}), binary_request()])
    )
    content = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        stop = min(len(content), start + data.draw(st.integers(0, 20)))
        content[start:stop] = data.draw(st.binary(max_size=20))
    check_response(app.request("POST", INFER, bytes(content), headers))
    check_healthy(app)


@MANY
@given(data=st.data())
def test_fuzzed_images(app: App, data: st.DataObject) -> None:
    content = bytearray(noise_image(data.draw(st.sampled_from(["PNG", "JPEG"]))))
    for _ in range(data.draw(st.integers(0, 6))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    check_response(app.request("POST", INFER, image_request(bytes(content))))
    check_healthy(app)
