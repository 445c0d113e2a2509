"""Committed descriptors of serving/proto: compiled from the committed schemas, complete and separate."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import Default

from robust_export.serving.proto.messages import FOLDER, load_messages

SCHEMAS = sorted(file.stem for file in FOLDER.glob("*.proto"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_descriptors_are_compiled_from_the_schema(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("not run: grpcio-tools is not installed (make setup)")
    compiled = tmp_path / f"{name}.binpb"
    words = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", f"--descriptor_set_out={compiled}"]
    subprocess.run([*words, f"{name}.proto"], check=True, capture_output=True)
    committed = FileDescriptorSet.FromString((FOLDER / f"{name}.binpb").read_bytes())
    assert committed == FileDescriptorSet.FromString(compiled.read_bytes()), "run `make proto`"


def test_field_numbers_are_those_of_the_protocol() -> None:
    """The numbers of https://github.com/kserve/open-inference-protocol, for what carries inferences."""
    messages = load_messages("open_inference")
    numbers = {
        name: {field.name: field.number for field in messages[name].DESCRIPTOR.fields}
        for name in ("ModelInferRequest", "ModelInferResponse", "ModelMetadataResponse")
    }
    assert numbers == {
        "ModelInferRequest": {
            "model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "inputs": 5, "outputs": 6,
            "raw_input_contents": 7,
        },
        "ModelInferResponse": {
            "model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "outputs": 5,
            "raw_output_contents": 6,
        },
        "ModelMetadataResponse": {"name": 1, "versions": 2, "platform": 3, "inputs": 4, "outputs": 5},
    }  # fmt: skip
    assert messages["ServerLiveResponse"](live=True).SerializeToString() == b"\x08\x01"


@pytest.mark.parametrize("name", SCHEMAS)
def test_messages_are_not_in_the_default_pool(name: str) -> None:
    """Other clients of the protocol register the same names there."""
    descriptor = next(iter(load_messages(name).values())).DESCRIPTOR
    assert descriptor.file.pool is not Default()
