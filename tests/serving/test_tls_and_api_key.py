"""API key and TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import trustme

from robust_export.errors import ArtifactError, InvalidValue
from robust_export.runtimes.remote import API_KEY_VARIABLE, RemoteClassifier
from robust_export.serving.grpc_service import MESSAGES, SERVICE
from robust_export.serving.server import uvicorn_config
from tests.serving.bundles import expected, images
from tests.serving.servers import TIMEOUT, App, Server, start

SECRET = "s3cret-" + "k" * 30


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and with cert.pem and key.pem for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(str(folder / "cert.pem"), append=True)
    return folder


@pytest.fixture(scope="module")
def secure(net: Path, pki: Path) -> Iterator[Server]:
    """A server with TLS and an API key."""
    options = ("--tls-cert", pki / "cert.pem", "--tls-key", pki / "key.pem")
    with start("--model", net, *options, env={API_KEY_VARIABLE: SECRET}) as running:
        yield running


def get(server: Server, pki: Path, path: str, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": key}
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    return httpx.get(server.rest + path, headers=headers, verify=context, timeout=TIMEOUT)


def test_client_sends_the_key(secure: Server, pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki / "ca.pem"))
    monkeypatch.setenv(API_KEY_VARIABLE, SECRET)
    remote = RemoteClassifier(f"{secure.rest}/v2/models/net")
    np.testing.assert_allclose(remote(images(3)), expected(images(3)), atol=1e-4)
    monkeypatch.setenv(API_KEY_VARIABLE, "another")
    with pytest.raises(ArtifactError, match="401"):
        RemoteClassifier(f"{secure.rest}/v2/models/net")


@pytest.mark.parametrize("key", [None, "", "Bearer", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}"])
def test_missing_or_wrong_key_gets_401(secure: Server, pki: Path, key: str | None) -> None:
    for path in ("/v2", "/v2/models", "/v2/models/net", "/metrics", "/openapi.json", "/nowhere"):
        response = get(secure, pki, path, key)
        assert response.status_code == 401
        assert response.json().keys() == {"error"}
        assert response.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert get(secure, pki, path, key).status_code == 200
    assert get(secure, pki, "/v2", f"Bearer {SECRET}").status_code == 200


def test_key_is_not_logged(secure: Server, pki: Path) -> None:
    get(secure, pki, "/v2", f"Bearer {SECRET}")
    assert SECRET not in secure.log.text
    assert SECRET not in str(secure.facts)


def test_grpc_with_tls_and_key(secure: Server, pki: Path) -> None:
    credentials = grpc.ssl_channel_credentials((pki / "ca.pem").read_bytes())
    with grpc.secure_channel(secure.grpc, credentials) as channel:
        metadata: Any = channel.unary_unary(f"/{SERVICE}/ModelMetadata")
        content = MESSAGES["ModelMetadataRequest"](name="net").SerializeToString()
        with pytest.raises(grpc.RpcError) as caught:
            metadata(content, timeout=TIMEOUT)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        response = metadata(content, timeout=TIMEOUT, metadata=[("authorization", f"Bearer {SECRET}")])
        assert MESSAGES["ModelMetadataResponse"].FromString(response).name == "net"
        assert channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=TIMEOUT)


def test_invalid_certificate_is_an_error(app: App, pki: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("hello")
    for certificate in (tmp_path / "bad.pem", tmp_path / "none.pem"):
        settings = replace(app.settings, tls_cert=str(certificate), tls_key=str(pki / "key.pem"))
        with pytest.raises(InvalidValue, match="not a certificate and its key"):
            uvicorn_config(settings, app.service)
