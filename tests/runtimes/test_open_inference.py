"""Responses of the Open Inference protocol: what `read_logits` accepts and refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from robust_export.runtimes.open_inference import one_line, read_logits


def tensor(**changes: Any) -> bytes:
    """Return a response with one output, x, of two numbers."""
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5], **changes}
    return json.dumps({"outputs": [entry]}).encode()


def test_json_numbers() -> None:
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
def test_invalid_response_raises_one_line(content: bytes, length: str | None) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_logits(content, length, "x")
    assert len(str(caught.value).splitlines()) == 1


def test_missing_bytes_raise() -> None:
    header = tensor(parameters={"binary_data_size": 8})
    with pytest.raises(ValueError, match="x should have 8 bytes of data, but 4 are left"):
        read_logits(header + b"1234", str(len(header)), "x")


def test_partial_number_raises() -> None:
    header = tensor(parameters={"binary_data_size": 7})
    with pytest.raises(ValueError, match="7 bytes are not FP32 data"):
        read_logits(header + b"1234567", str(len(header)), "x")


def test_one_line_removes_control_characters() -> None:
    assert one_line("\x1b[2Jgone\r\nnow \u202e") == "[2Jgone now"
    assert one_line("x" * 9999) == "x" * 300 + "..."
