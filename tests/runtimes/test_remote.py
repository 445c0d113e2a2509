"""RemoteClassifier: logits, metadata, addresses and invalid responses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from robust_export.errors import ArtifactError, InvalidValue
from robust_export.runtimes.classifier import Artifact
from robust_export.runtimes.registry import is_url, open_url
from robust_export.runtimes.remote import RemoteClassifier
from tests.runtimes.served import CLASSES, INPUT_SHAPE, images, model, open_served, served
from tests.runtimes.v2_server import Fault, Request, serve


@pytest.mark.parametrize("n", [1, 5, 8, 13])
def test_logits_are_bit_identical(binary: bool, n: int) -> None:
    requests: list[Request] = []
    with served(binary=binary, requests=requests) as base:
        logits = open_served(base, batch_size=5)(images(n))
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, model(images(n)))
    posts = [request for request in requests if request.method == "POST"]
    assert all(request.binary == request.binary_response == binary for request in posts)
    assert [request.rows for request in posts] == [5] * (n // 5) + [n % 5] * (n % 5 > 0)
    assert len({request.port for request in requests}) == 1, "the connection was not kept open"


def test_metadata_is_read() -> None:
    with served() as base:
        classifier: Artifact = open_url(f"{base}/v2/models/net")
        assert (classifier.runtime, classifier.precision) == ("remote", "unknown")
        assert (classifier.input_shape, classifier.classes) == (INPUT_SHAPE, CLASSES)
        assert classifier.labels is None
        assert classifier.sparta_nodes == classifier.fused_nodes() == 0
        assert classifier(images(3)[:0]).shape == (0, CLASSES)


def test_labels_are_read_from_metadata() -> None:
    labels = [f"class {i}" for i in range(CLASSES)]
    metadata = {"parameters": {"robust_export.labels": json.dumps(labels)}}
    with served(metadata=metadata) as base:
        assert open_served(base).labels == labels
    metadata = {"parameters": {"robust_export.labels": "cat, dog"}}
    with served(metadata=metadata) as base, pytest.raises(ArtifactError, match="not a JSON list"):
        open_served(base)


def test_free_class_count_is_inferred() -> None:
    requests: list[Request] = []
    with serve(model, input_shape=INPUT_SHAPE, classes=-1, requests=requests) as base:
        assert open_served(base).classes == CLASSES
    assert [request.rows for request in requests if request.method == "POST"] == [1]


def test_wrong_class_count_raises() -> None:
    with (
        serve(model, input_shape=INPUT_SHAPE, classes=CLASSES + 1) as base,
        pytest.raises(ArtifactError, match=r"logits \[2, 7\]; expected \[2, 8\]"),
    ):
        open_served(base)(images(2))


def test_fixed_batch_of_one() -> None:
    requests: list[Request] = []
    fixed = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, *INPUT_SHAPE]}]}
    with served(metadata=fixed, requests=requests) as base:
        np.testing.assert_array_equal(open_served(base)(images(3)), model(images(3)))
    assert [request.rows for request in requests if request.method == "POST"] == [1, 1, 1]


@pytest.mark.parametrize("tail", ["", "/", "/versions/1", "/versions/1/"])
def test_address_forms(tail: str) -> None:
    requests: list[Request] = []
    with served(requests=requests) as base:
        classifier = RemoteClassifier(f"{base}/v2/models/net{tail}")
        np.testing.assert_array_equal(classifier(images(2)), model(images(2)))
    assert requests[-1].path == f"/v2/models/net{tail.rstrip('/')}/infer"


@pytest.mark.parametrize(
    "url",
    [
        "model.onnx", "ftp://host/v2/models/net", "http://host:8080", "http://host/v1/models/net", "http:///v2/models/x",
        "http://host/v2/models/", "http://host/v2/models/net/infer", "http://host/v2/models/net?x=1",
        "http://127.0.0.1:99999/v2/models/net", "http://host/v2/models/a b", "https://me:secret@host/v2/models/net",
        "http://host/v2/models/net\n", "http://host/v2/models/\x07",
    ],
)  # fmt: skip
def test_invalid_address_raises(url: str) -> None:
    with pytest.raises(InvalidValue, match="expected http://host:port/v2/models/NAME") as caught:
        RemoteClassifier(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"timeout": 0.0}, {"timeout": float("inf")}])
def test_invalid_settings_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="expected 1 or more"):
        RemoteClassifier("http://127.0.0.1:9/v2/models/net", **settings)


def test_is_url() -> None:
    assert is_url("http://h/v2/models/n")
    assert is_url("HTTPS://h/v2/models/n")
    assert not is_url("exported/http/model.onnx")


@pytest.mark.parametrize(
    "metadata",
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
def test_non_classifier_raises(metadata: dict[str, Any]) -> None:
    with served(metadata=metadata) as base, pytest.raises(ArtifactError, match="expected"):
        open_served(base)


@pytest.mark.parametrize("metadata", [{"inputs": None}, {"inputs": "pixels"}, {"outputs": [{"name": "x"}]}])
def test_invalid_metadata_raises(metadata: dict[str, Any]) -> None:
    with (
        served(metadata=metadata) as base,
        pytest.raises(ArtifactError, match=r"invalid V2 response: (in|out)puts"),
    ):
        open_served(base)


def test_unknown_model_raises() -> None:
    with (
        served() as base,
        pytest.raises(ArtifactError, match=r"(?s)404 Not Found: there is no .*Check the model's name"),
    ):
        open_served(base, model="other")


def test_wrong_image_size_raises() -> None:
    with served() as base, pytest.raises(InvalidValue, match=r"takes images \[3, 4, 5\], not \[3, 5, 4\]"):
        open_served(base)(np.zeros((2, 3, 5, 4), np.float32))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("rows", r"answered 3 images with logits \[2, 7\]; expected \[3, 7\]"),
        ("shape", r"logits FP32 \[4, 7\] has 21 numbers"),
        ("truncated", "(should have 84 bytes of data, but 80 are left|logits .* has 20 numbers)"),
        ("cut", "the connection failed twice"),
        ("500", "500 Internal Server Error: the model failed"),
        ("closed", "the connection failed twice"),
        ("moved", r"redirects \(307\) to http://elsewhere\.invalid"),
        ("html", "(?s)invalid V2 response: Invalid JSON.*Welcome to the gateway"),
    ],
)
def test_invalid_response_raises(binary: bool, fault: Fault, message: str) -> None:
    with served(fault=fault, binary=binary) as base:
        classifier = open_served(base)
        with pytest.raises(ArtifactError, match=message) as caught:
            classifier(images(3))
    assert base in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("fault", ["more", "nested", "closed once"])
def test_unusual_valid_responses(binary: bool, fault: Fault) -> None:
    with served(fault=fault, binary=binary) as base:
        np.testing.assert_array_equal(open_served(base)(images(3)), model(images(3)))


def test_wrong_logits_are_returned_as_they_are(binary: bool) -> None:
    """NaN and permuted pixels are valid responses; verification judges them."""
    with served(fault="nan", binary=binary) as base:
        logits = open_served(base)(images(3))
    assert np.isnan(logits[0]).all()
    np.testing.assert_array_equal(logits[1:], model(images(3))[1:])
    with served(fault="permuted", binary=binary) as base:
        assert abs(open_served(base)(images(3)) - model(images(3))).max() > 0.1
