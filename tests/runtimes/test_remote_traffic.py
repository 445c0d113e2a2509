"""RemoteClassifier over the network: refusals, retries, keys, proxies, certificates."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest

from robust_export.errors import ArtifactError, InvalidValue
from robust_export.runtimes.remote import (
    API_KEY_VARIABLE,
    MAX_RETRIES,
    MAX_WAIT,
    RemoteClassifier,
    retry_after,
)
from tests.runtimes.served import CLASSES, images, model, no_sleep, open_served, served
from tests.runtimes.v2_server import LIMIT, Request


def test_refused_batches_are_halved(binary: bool) -> None:
    requests: list[Request] = []
    with served(fault="limit", binary=binary, requests=requests) as base:
        classifier = open_served(base, batch_size=14)
        for _ in range(2):
            np.testing.assert_array_equal(classifier(images(20)), model(images(20)))
    rows = [request.rows for request in requests if request.method == "POST"]
    assert rows == [14, 7] + 2 * ([3] * 6 + [2])
    assert LIMIT >= 3


def test_refused_single_image_raises() -> None:
    requests: list[Request] = []
    with (
        served(binary=False, requests=requests) as base,
        pytest.raises(ArtifactError, match="400 Bad Request: unexpected bytes after"),
    ):
        open_served(base, binary=True)(images(3))
    assert [request.rows for request in requests if request.method == "POST"] == [3, 1]


def test_unauthorized_is_not_retried() -> None:
    requests: list[Request] = []
    with (
        served(fault="401", requests=requests) as base,
        pytest.raises(ArtifactError, match=rf"(?s)401 Unauthorized: unauthenticated.*Set {API_KEY_VARIABLE}"),
    ):
        open_served(base)(images(3))
    assert [request.rows for request in requests if request.method == "POST"] == [3]


def test_retry_after_is_respected() -> None:
    waits: list[float] = []
    with served(fault="busy") as base:
        logits = open_served(base, sleep=waits.append)(images(3))
    np.testing.assert_array_equal(logits, model(images(3)))
    assert waits == [2.0, 2.0]


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that is always busy, with Retry-After of an hour except for the model "brief"."""
    from tests.runtimes import v2_server

    def reply(self: Any) -> None:
        headers = {} if "brief" in self.path else {"Retry-After": "3600"}
        original(self, 503, {"error": "loading"}, headers)

    original = v2_server._Handler.reply
    monkeypatch.setattr(v2_server._Handler, "do_GET", reply)
    with served() as base:
        yield base


def test_retries_end(busy: str) -> None:
    waits: list[float] = []
    with pytest.raises(ArtifactError, match="503 Service Unavailable: loading"):
        RemoteClassifier(f"{busy}/v2/models/brief", sleep=waits.append)
    assert len(waits) == MAX_RETRIES
    assert max(waits) <= MAX_WAIT
    with pytest.raises(ArtifactError, match=r"(?s)loading.*Retry-After: 3600"):
        RemoteClassifier(f"{busy}/v2/models/net", sleep=no_sleep)


def test_retry_after_dates() -> None:
    soon = datetime.now(UTC) + timedelta(days=100)
    assert 99 * 86_400 < retry_after(format_datetime(soon, usegmt=True), 0) <= 100 * 86_400
    assert retry_after("Thu, 01 Jan 1970 00:00:00 -0000", 0) == 0
    assert [retry_after(value, 1) for value in (None, "", "soon", "-1", "nan", "9" * 5000)] == [1.0] * 6


def test_refused_connection_raises() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v2/models/net"
        with pytest.raises(ArtifactError, match=r"(?s)cannot be reached: .*refused.*Check that the server"):
            RemoteClassifier(url)


def test_invalid_host_name_raises() -> None:
    with pytest.raises((ArtifactError, InvalidValue), match=r"aaa.*(cannot be reached|not the address)"):
        RemoteClassifier(f"http://{'a' * 70}/v2/models/net")


def test_https_to_http_server_raises() -> None:
    with served() as base, pytest.raises(ArtifactError, match=r"(?s)cannot be reached: .*SSL.*http or https"):
        open_served(base.replace("http:", "https:"))


def test_timeout_raises() -> None:
    with served(fault="slow") as base, pytest.raises(ArtifactError, match=r"did not answer within 0\.3 s"):
        open_served(base, timeout=0.3)(images(3))


def test_key_is_sent_and_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "s3cret\n")
    requests: list[Request] = []
    with served(requests=requests) as base:
        open_served(base)(images(1))
        with pytest.raises(ArtifactError, match=r"404 Not Found: there is no /v2/models/\*\*\* here"):
            open_served(base, model="s3cret")  # the response repeats the key
    assert {request.headers["authorization"] for request in requests} == {"Bearer s3cret"}
    monkeypatch.setenv(API_KEY_VARIABLE, "s3cret key")
    with pytest.raises(InvalidValue, match=API_KEY_VARIABLE) as caught:
        RemoteClassifier("http://127.0.0.1:9/v2/models/net")
    assert "s3cret" not in str(caught.value)


def test_no_key_no_header() -> None:
    requests: list[Request] = []
    with served(requests=requests) as base:
        open_served(base)
    assert all("authorization" not in request.headers for request in requests)


def test_localhost_bypasses_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with served() as base:
        assert open_served(base).classes == CLASSES


def test_missing_certificates_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(ArtifactError, match="SSL_CERT_FILE"):
        RemoteClassifier("https://127.0.0.1:9/v2/models/net")
