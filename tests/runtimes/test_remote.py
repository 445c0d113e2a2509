"""A served model as a classifier: the same numbers, and clear words where they are others."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from robust_export.errors import ArtifactError, InvalidValue
from robust_export.runtimes.classifier import Artifact
from robust_export.runtimes.registry import is_url, open_url
from robust_export.runtimes.remote import RemoteClassifier
from tests.runtimes.served import CLASSES, PLANE, images, model, open_served, served
from tests.runtimes.v2_server import Fault, Seen, serve


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
