"""Triton's own ModelConfig message, from NVIDIA's client."""

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

    Its module is loaded from its file, because the package imports dependencies that are not installed.
    """
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("not run: tritonclient is not installed (make setup)")
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


def read(text: str) -> Any:
    """Parse a config.pbtxt; unknown fields and values of a wrong type are errors."""
    return text_format.Parse(text, message_type()())
