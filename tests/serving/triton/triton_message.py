"""Triton's own description of config.pbtxt, from NVIDIA's client."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format


@functools.cache
def message_type() -> Any:
    """Return the class ModelConfig.

    Its module is loaded by its file: the package around it wants more than the message does.
    """
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed: `make setup` brings it")
    file = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


def read(text: str) -> Any:
    """Return a config.pbtxt as Triton's message; an unknown field or a value of another type is an error."""
    return text_format.Parse(text, message_type()())
