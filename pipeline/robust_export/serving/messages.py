"""The messages of the protocol's gRPC service, made from a table, without generated code.

Names, types and numbers of the fields are the protocol's (https://github.com/kserve/open-inference-protocol);
what is generated from its file would be tied to a major version of protobuf. They live in a pool of their
own, so that other packages of the process may have theirs.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready 1",
    "ModelReadyRequest": "string name 1, string version 2",
    "ModelReadyResponse": "bool ready 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name 1, string version 2, repeated string extensions 3",
    "ModelMetadataRequest": "string name 1, string version 2",
    "ModelMetadataResponse": (
        "string name 1, repeated string versions 2, string platform 3, "
        "repeated ModelMetadataResponse.TensorMetadata inputs 4, "
        "repeated ModelMetadataResponse.TensorMetadata outputs 5"
    ),
    "ModelMetadataResponse.TensorMetadata": "string name 1, string datatype 2, repeated int64 shape 3",
    "ModelInferRequest": (
        "string model_name 1, string model_version 2, string id 3, map InferParameter parameters 4, "
        "repeated ModelInferRequest.InferInputTensor inputs 5, "
        "repeated ModelInferRequest.InferRequestedOutputTensor outputs 6, repeated bytes raw_input_contents 7"
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name 1, string datatype 2, repeated int64 shape 3, map InferParameter parameters 4, "
        "InferTensorContents contents 5"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "string name 1, map InferParameter parameters 2",
    "ModelInferResponse": (
        "string model_name 1, string model_version 2, string id 3, map InferParameter parameters 4, "
        "repeated ModelInferResponse.InferOutputTensor outputs 5, repeated bytes raw_output_contents 6"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name 1, string datatype 2, repeated int64 shape 3, map InferParameter parameters 4, "
        "InferTensorContents contents 5"
    ),
    "InferParameter": (
        "oneof bool bool_param 1, oneof int64 int64_param 2, oneof string string_param 3, "
        "oneof double double_param 4, oneof uint64 uint64_param 5"
    ),
    "InferTensorContents": (
        "repeated bool bool_contents 1, repeated int32 int_contents 2, repeated int64 int64_contents 3, "
        "repeated uint32 uint_contents 4, repeated uint64 uint64_contents 5, repeated float fp32_contents 6, "
        "repeated double fp64_contents 7, repeated bytes bytes_contents 8"
    ),
}  # fmt: skip


def message(name: str) -> Any:
    """Return the class of a message."""
    return _CLASSES[name]


def _classes() -> dict[str, Any]:
    file = FileDescriptorProto(name="robust_export/open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        outer, _, inner = name.partition(".")
        home = next((made for made in file.message_type if made.name == outer), None)
        made = home.nested_type.add(name=inner) if home else file.message_type.add(name=outer)
        for words in filter(None, re.split(", *", fields)):
            _add(made, name, words.split())
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


def _add(made: DescriptorProto, owner: str, words: list[str]) -> None:
    """Add the field that "[repeated | oneof | map] <type> <name> <number>" says."""
    *kind, of, name, number = words
    field = made.field.add(name=name, number=int(number), label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind == ["map"]:
        entry = made.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add(entry, "", ["string", "key", "1"])
        _add(entry, "", [of, "value", "2"])
        kind, of = ["repeated"], f"{owner}.{entry.name}"
    if kind == ["repeated"]:
        field.label = FieldDescriptorProto.LABEL_REPEATED
    elif kind == ["oneof"]:
        if not made.oneof_decl:
            made.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if of[0].isupper():
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{of}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{of.upper()}")


_CLASSES = _classes()
