"""What lies between a served model and us: refusals, waiting, keys, proxies, certificates."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest

from robust_export.errors import ArtifactError, InvalidValue
from robust_export.runtimes.remote import KEY, LONGEST, WAITS, RemoteClassifier, retry_after
from tests.runtimes.served import CLASSES, images, model, no_sleep, open_served, served
from tests.runtimes.v2_server import LIMIT, Seen


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
    soon = datetime.now(UTC) + timedelta(days=100)
    assert 99 * 86_400 < retry_after(format_datetime(soon, usegmt=True), 0) <= 100 * 86_400
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
