"""Whatever a fuzzer sends, the answer is right, or a V2 error with a 4xx."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving import request_bodies
from tests.serving.bundles import PLANE
from tests.serving.request_bodies import LENGTH
from tests.serving.servers import App, Reply
from tests.serving.test_invalid_requests import INFER, ONE, asked, binary, error, healthy, image, photo

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
    [1, *PLANE]
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


def judged(reply: Reply, pixels: Any = None) -> None:
    """See that a reply is a right answer or a V2 error with a 4xx."""
    if reply.status == 200:
        found = request_bodies.read(reply.content, reply.headers)
        assert all(len(output) for output in found.values())
    else:
        assert 400 <= reply.status < 500, reply.content
        error(reply)


@MANY
@given(request=requests)
def test_fuzzed_requests(app: App, request: dict[str, Any]) -> None:
    judged(app.ask("POST", INFER, json.dumps(request).encode()))
    healthy(app)


@MANY
@given(request=requests, tail=st.binary(max_size=900), length=st.integers(-5, 2000) | st.text(max_size=4))
def test_fuzzed_requests_with_bytes(app: App, request: dict[str, Any], tail: bytes, length: Any) -> None:
    head = json.dumps(request).encode()
    text = str(len(head)) if length == 0 else str(length).encode("latin-1", "replace").decode("latin-1")
    judged(app.ask("POST", INFER, head + tail, {LENGTH: text}))
    healthy(app)


@MANY
@given(data=st.data())
def test_fuzzed_bytes(app: App, data: st.DataObject) -> None:
    """A valid request with a few bytes of it changed, cut out, or put in."""
    body, headers = data.draw(st.sampled_from([request_bodies.as_bytes(ONE), (asked(), {}), binary()]))
    found = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(found)))
        stop = min(len(found), start + data.draw(st.integers(0, 20)))
        found[start:stop] = data.draw(st.binary(max_size=20))
    judged(app.ask("POST", INFER, bytes(found), headers))
    healthy(app)


@MANY
@given(data=st.data())
def test_fuzzed_images(app: App, data: st.DataObject) -> None:
    found = bytearray(photo(data.draw(st.sampled_from(["PNG", "JPEG"]))))
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, len(found) - 1))
        found[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del found[data.draw(st.integers(0, len(found))) :]
    judged(app.ask("POST", INFER, image(bytes(found))))
    healthy(app)
