"""A served model as a classifier: the same numbers, and clear words where a server fails."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from robust_export.classifier import Artifact
from robust_export.errors import ArtifactError, InvalidValue
from robust_export.runtimes import is_url, open_url
from robust_export.runtimes.open_inference import clip, read_logits
from robust_export.runtimes.remote import KEY, LONGEST, WAITS, RemoteClassifier, retry_after
from tests.runtimes.v2_server import LIMIT, Fault, Seen, serve

Array = npt.NDArray[np.float32]

PLANE, CLASSES = (3, 4, 5), 7
WEIGHT = np.random.default_rng(0).standard_normal((60, CLASSES)).astype(np.float32)


def model(pixels: Array) -> Array:
    """Return logits of a linear network: each depends on every pixel, so that no permutation passes."""
    return (pixels.reshape(len(pixels), -1).astype(np.float64) @ WEIGHT).astype(np.float32)


def images(n: int) -> Array:
    return np.random.default_rng(n).random((n, *PLANE), dtype=np.float32)


def no_sleep(seconds: float) -> None:
    raise AssertionError(f"there was no reason to wait {seconds} s")


def served(**settings: Any) -> AbstractContextManager[str]:
    return serve(model, plane=PLANE, classes=CLASSES, **settings)


def open_served(base: str, model: str = "net", **settings: Any) -> RemoteClassifier:
    return RemoteClassifier(f"{base}/v2/models/{model}", **{"sleep": no_sleep, **settings})


@pytest.fixture(params=[True, False], ids=["binary", "json"])
def binary(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


@pytest.mark.parametrize("n", [1, 5, 8, 13])
def test_the_logits_are_the_models_own_to_the_bit(binary: bool, n: int) -> None:
    seen: list[Seen] = []
    with served(binary=binary, seen=seen) as base:
        logits = open_served(base, batch_size=5)(images(n))
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, model(images(n)))
    asked = [request for request in seen if request.method == "POST"]
    assert all(request.binary == request.wants_binary == binary for request in asked)
    assert [request.rows for request in asked] == [5] * (n // 5) + [n % 5] * (n % 5 > 0)
    assert len({request.port for request in seen}) == 1, "the connection was not kept"


def test_knows_what_the_server_says() -> None:
    with served() as base:
        classifier: Artifact = open_url(f"{base}/v2/models/net")
        assert (classifier.runtime, classifier.precision) == ("remote", "unknown")
        assert (classifier.plane, classifier.classes) == (PLANE, CLASSES)
        assert classifier.labels is None
        assert classifier.sparta_nodes == classifier.fused_nodes() == 0
        assert classifier(images(3)[:0]).shape == (0, CLASSES)


def test_labels_that_the_metadata_has() -> None:
    labels = [f"class {i}" for i in range(CLASSES)]
    told = {"parameters": {"robust_export.labels": json.dumps(labels)}}
    with served(metadata=told) as base:
        assert open_served(base).labels == labels
    told = {"parameters": {"robust_export.labels": "cat, dog"}}
    with served(metadata=told) as base, pytest.raises(ArtifactError, match="no JSON list"):
        open_served(base)


def test_asks_for_the_number_of_classes_that_the_metadata_leaves_open() -> None:
    seen: list[Seen] = []
    with serve(model, plane=PLANE, classes=-1, seen=seen) as base:
        assert open_served(base).classes == CLASSES
    assert [request.rows for request in seen if request.method == "POST"] == [1]


def test_another_number_of_classes_than_the_metadata_has() -> None:
    with (
        serve(model, plane=PLANE, classes=CLASSES + 1) as base,
        pytest.raises(ArtifactError, match=r"logits \[2, 7\]; expected \[2, 8\]"),
    ):
        open_served(base)(images(2))


def test_a_model_of_one_image_gets_one_at_a_time() -> None:
    seen: list[Seen] = []
    fixed = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, *PLANE]}]}
    with served(metadata=fixed, seen=seen) as base:
        np.testing.assert_array_equal(open_served(base)(images(3)), model(images(3)))
    assert [request.rows for request in seen if request.method == "POST"] == [1, 1, 1]


@pytest.mark.parametrize("tail", ["", "/", "/versions/1", "/versions/1/"])
def test_forms_of_the_address(tail: str) -> None:
    seen: list[Seen] = []
    with served(seen=seen) as base:
        classifier = RemoteClassifier(f"{base}/v2/models/net{tail}")
        np.testing.assert_array_equal(classifier(images(2)), model(images(2)))
    assert seen[-1].path == f"/v2/models/net{tail.rstrip('/')}/infer"


@pytest.mark.parametrize(
    "url",
    [
        "model.onnx", "ftp://host/v2/models/net", "http://host:8080", "http://host/v1/models/net", "http:///v2/models/x",
        "http://host/v2/models/", "http://host/v2/models/net/infer", "http://host/v2/models/net?x=1",
        "http://127.0.0.1:99999/v2/models/net", "http://host/v2/models/a b", "https://me:secret@host/v2/models/net",
        "http://host/v2/models/net\n", "http://host/v2/models/\x07",
    ],
)  # fmt: skip
def test_other_addresses_are_refused_with_the_form_that_is_expected(url: str) -> None:
    with pytest.raises(InvalidValue, match="expected http://host:port/v2/models/NAME") as caught:
        RemoteClassifier(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"timeout": 0.0}, {"timeout": float("inf")}])
def test_settings_out_of_their_range(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="expected 1 or more"):
        RemoteClassifier("http://127.0.0.1:9/v2/models/net", **settings)


def test_what_is_an_address() -> None:
    assert is_url("http://h/v2/models/n")
    assert is_url("HTTPS://h/v2/models/n")
    assert not is_url("exported/http/model.onnx")


@pytest.mark.parametrize(
    "told",
    [
        {"inputs": []},
        {"inputs": [{"name": n, "datatype": "FP32", "shape": [-1, 3, 4, 5]} for n in "ab"]},
        {"inputs": [{"name": "a", "datatype": "UINT8", "shape": [-1, 3, 4, 5]}]},
        {"inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 60]}]},
        {"inputs": [{"name": "a", "datatype": "FP32", "shape": []}]},
        {"inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]},
        {"inputs": [{"name": "a", "datatype": "FP32", "shape": [8, 3, 4, 5]}]},
        {"outputs": []},
        {"outputs": [{"name": "a", "datatype": "INT64", "shape": [-1, 7]}]},
        {"outputs": [{"name": "a", "datatype": "FP32", "shape": [-1]}]},
    ],
)
def test_a_model_that_is_no_classifier_of_images(told: dict[str, Any]) -> None:
    with served(metadata=told) as base, pytest.raises(ArtifactError, match="expected"):
        open_served(base)


@pytest.mark.parametrize("told", [{"inputs": None}, {"inputs": "pixels"}, {"outputs": [{"name": "x"}]}])
def test_metadata_that_is_none(told: dict[str, Any]) -> None:
    with (
        served(metadata=told) as base,
        pytest.raises(ArtifactError, match=r"no answer of the V2 protocol: (in|out)puts"),
    ):
        open_served(base)


def test_a_model_that_is_not_there() -> None:
    with (
        served() as base,
        pytest.raises(ArtifactError, match=r"(?s)404 Not Found: there is no .*Is this the model's name"),
    ):
        open_served(base, model="other")


def test_images_of_another_size() -> None:
    with served() as base, pytest.raises(InvalidValue, match=r"takes images \[3, 4, 5\], not \[3, 5, 4\]"):
        open_served(base)(np.zeros((2, 3, 5, 4), np.float32))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("rows", r"answered 3 images with logits \[2, 7\]; expected \[3, 7\]"),
        ("shape", r"logits FP32 \[4, 7\] has 21 numbers"),
        ("truncated", "(should have 84 bytes of data, but 80 are there|logits .* has 20 numbers)"),
        ("cut", "the connection failed twice"),
        ("500", "500 Internal Server Error: the model fell over"),
        ("closed", "the connection failed twice"),
        ("moved", "elsewhere.*elsewhere.invalid"),
        ("html", "(?s)no answer of the V2 protocol: Invalid JSON.*Welcome to the gateway"),
    ],
)
def test_answers_that_are_wrong(binary: bool, fault: Fault, says: str) -> None:
    with served(fault=fault, binary=binary) as base:
        classifier = open_served(base)
        with pytest.raises(ArtifactError, match=says) as caught:
            classifier(images(3))
    assert base in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("fault", ["more", "nested", "closed once"])
def test_answers_that_are_right_in_another_way(binary: bool, fault: Fault) -> None:
    with served(fault=fault, binary=binary) as base:
        np.testing.assert_array_equal(open_served(base)(images(3)), model(images(3)))


def test_what_a_server_gets_wrong_is_seen(binary: bool) -> None:
    """NaN, and pixels in another order, are answers: to judge them is verification's business."""
    with served(fault="nan", binary=binary) as base:
        logits = open_served(base)(images(3))
    assert np.isnan(logits[0]).all()
    np.testing.assert_array_equal(logits[1:], model(images(3))[1:])
    with served(fault="permuted", binary=binary) as base:
        assert abs(open_served(base)(images(3)) - model(images(3))).max() > 0.1


def test_halves_batches_until_the_server_takes_them(binary: bool) -> None:
    seen: list[Seen] = []
    with served(fault="limit", binary=binary, seen=seen) as base:
        classifier = open_served(base, batch_size=14)
        for _ in range(2):
            np.testing.assert_array_equal(classifier(images(20)), model(images(20)))
    rows = [request.rows for request in seen if request.method == "POST"]
    assert rows == [14, 7] + 2 * ([3] * 6 + [2])
    assert LIMIT >= 3


def test_gives_up_where_even_one_image_is_refused() -> None:
    seen: list[Seen] = []
    with (
        served(binary=False, seen=seen) as base,
        pytest.raises(ArtifactError, match="400 Bad Request: what is this after"),
    ):
        open_served(base, binary=True)(images(3))
    assert [request.rows for request in seen if request.method == "POST"] == [3, 1]


def test_a_smaller_batch_does_not_mend_a_missing_key() -> None:
    seen: list[Seen] = []
    with (
        served(fault="401", seen=seen) as base,
        pytest.raises(ArtifactError, match=rf"(?s)401 Unauthorized: who are you.*Set {KEY}"),
    ):
        open_served(base)(images(3))
    assert [request.rows for request in seen if request.method == "POST"] == [3]


def test_waits_for_a_busy_server_as_long_as_it_asks() -> None:
    waits: list[float] = []
    with served(fault="busy") as base:
        logits = open_served(base, sleep=waits.append)(images(3))
    np.testing.assert_array_equal(logits, model(images(3)))
    assert waits == [2.0, 2.0]


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that is always busy, and asks to come back in an hour or, at /brief, does not say when."""
    from tests.runtimes import v2_server

    def reply(self: Any) -> None:
        headers = {} if "brief" in self.path else {"Retry-After": "3600"}
        original(self, 503, {"error": "loading"}, headers)

    original = v2_server._Handler.reply
    monkeypatch.setattr(v2_server._Handler, "do_GET", reply)
    with served() as base:
        yield base


def test_does_not_wait_for_ever(busy: str) -> None:
    waits: list[float] = []
    with pytest.raises(ArtifactError, match="503 Service Unavailable: loading"):
        RemoteClassifier(f"{busy}/v2/models/brief", sleep=waits.append)
    assert len(waits) == WAITS
    assert max(waits) <= LONGEST
    with pytest.raises(ArtifactError, match=r"(?s)loading.*Retry-After: 3600"):
        RemoteClassifier(f"{busy}/v2/models/net", sleep=no_sleep)


def test_dates_to_wait_for() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < retry_after(format_datetime(soon, usegmt=True), 0) <= 100
    assert retry_after("Thu, 01 Jan 1970 00:00:00 -0000", 0) == 0
    assert [retry_after(value, 1) for value in (None, "", "soon", "-1", "nan", "9" * 5000)] == [1.0] * 6


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v2/models/net"
        with pytest.raises(ArtifactError, match=r"(?s)cannot be reached: .*refused.*Is the server running"):
            RemoteClassifier(url)


def test_names_that_no_host_has() -> None:
    with pytest.raises((ArtifactError, InvalidValue), match=r"aaa.*(cannot be reached|no address)"):
        RemoteClassifier(f"http://{'a' * 70}/v2/models/net")


def test_no_tls_where_it_is_expected() -> None:
    with served() as base, pytest.raises(ArtifactError, match=r"(?s)cannot be reached: .*SSL.*http or https"):
        open_served(base.replace("http:", "https:"))


def test_a_server_that_does_not_answer() -> None:
    with served(fault="slow") as base, pytest.raises(ArtifactError, match=r"did not answer within 0\.3 s"):
        open_served(base, timeout=0.3)(images(3))


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "s3cret\n")
    seen: list[Seen] = []
    with served(seen=seen) as base:
        open_served(base)(images(1))
        with pytest.raises(ArtifactError, match=r"404 Not Found: there is no /v2/models/\*\*\* here"):
            open_served(
                base, model="s3cret"
            )  # the server repeats the word, and the address is the user's own
    assert {request.headers["authorization"] for request in seen} == {"Bearer s3cret"}
    monkeypatch.setenv(KEY, "s3cret key")
    with pytest.raises(InvalidValue, match=KEY) as caught:
        RemoteClassifier("http://127.0.0.1:9/v2/models/net")
    assert "s3cret" not in str(caught.value)


def test_without_a_key_none_is_sent() -> None:
    seen: list[Seen] = []
    with served(seen=seen) as base:
        open_served(base)
    assert all("authorization" not in request.headers for request in seen)


def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with served() as base:
        assert open_served(base).classes == CLASSES


def test_certificates_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(ArtifactError, match="SSL_CERT_FILE"):
        RemoteClassifier("https://127.0.0.1:9/v2/models/net")


def tensor(**changes: Any) -> bytes:
    """Return an answer with one output, x, of two numbers."""
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5], **changes}
    return json.dumps({"outputs": [entry]}).encode()


def test_numbers_that_json_has_in_several_ways() -> None:
    np.testing.assert_array_equal(read_logits(tensor(), None, "x"), [[1, 2.5]])
    np.testing.assert_array_equal(read_logits(tensor(data=[None, 2]), None, "x"), [[np.nan, 2]])
    np.testing.assert_array_equal(
        read_logits(tensor(data=[1e300, float("inf")]), None, "x"), [[np.inf, np.inf]]
    )
    np.testing.assert_array_equal(read_logits(tensor(parameters=None), None, "x"), [[1, 2.5]])


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (b"", None),
        (b"[]", None),
        (b"null", None),
        (b'{"outputs": null}', None),
        (b'{"outputs": []}', None),
        (b"[" * 100_000, None),
        (b"\xff\xfe", None),
        (tensor(name="y"), None),
        (tensor(datatype="FP64"), None),
        (tensor(shape=[2, 2]), None),
        (tensor(shape=[-1, -2]), None),
        (tensor(shape=[1 << 40, 1 << 40]), None),
        (tensor(data=["a", "b"]), None),
        (tensor(data=[[1, 2], [3]]), None),
        (tensor(data=[{}, {}]), None),
        (tensor(data=None), None),
        (tensor(), "abc"),
        (tensor(), "-1"),
        (tensor(), "99999"),
        (tensor(), "9" * 5000),
        (tensor(parameters={"binary_data_size": 8}), None),
        (tensor(parameters={"binary_data_size": -8}), None),
        (tensor(parameters={"binary_data_size": "8"}), None),
    ],
)  # fmt: skip
def test_bytes_that_are_no_answer(content: bytes, length: str | None) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_logits(content, length, "x")
    assert len(str(caught.value).splitlines()) == 1


def test_bytes_that_are_missing() -> None:
    header = tensor(parameters={"binary_data_size": 8})
    with pytest.raises(ValueError, match="x should have 8 bytes of data, but 4 are there"):
        read_logits(header + b"1234", str(len(header)), "x")


def test_bytes_that_are_no_numbers() -> None:
    header = tensor(parameters={"binary_data_size": 7})
    with pytest.raises(ValueError, match="7 bytes are no FP32 data"):
        read_logits(header + b"1234567", str(len(header)), "x")


def test_a_servers_words_cannot_take_over_the_terminal() -> None:
    assert clip("\x1b[2Jgone\r\nnow \u202e") == "[2Jgone now"
    assert clip("x" * 9999) == "x" * 300 + "..."
