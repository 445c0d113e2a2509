"""OpenAPI 3.1 description of the REST interface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from robust_export.serving.tensors import PIXELS
from robust_export.utils.version import __version__

if TYPE_CHECKING:
    from robust_export.serving.service import ServedModel

TEXT, TRUE = {"type": "string"}, {"const": True}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string", "minLength": 1}}}
ERROR_STATUSES = ("400", "401", "404", "413", "415", "429", "503")


def openapi(models: Sequence[ServedModel]) -> dict[str, Any]:
    """Return the description of a server with these models."""
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("Server metadata", _object("name", "version", "extensions"))},
        "/v2/models": {"get": _operation("Names of the models", _object("models"))},
        "/v2/health/live": {"get": _operation("Liveness probe", _object(live=TRUE))},
        "/v2/health/ready": {"get": _operation("Readiness probe", _object(ready=TRUE))},
        "/metrics": {"get": _operation("Prometheus metrics", TEXT, "text/plain")},
        "/openapi.json": {"get": _operation("This description", _object("openapi", "paths"))},
        "/": {"get": _operation("Web page", TEXT, "text/html")},
    }
    names = [served.model.name for served in models]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        parameters = _parameters(path, names)
        metadata = _object("name", "versions", "platform", "inputs", "outputs")
        paths[path] = {**parameters, "get": _operation("Model metadata", metadata)}
        readiness = _operation("Readiness probe of a model", _object(ready=TRUE))
        paths[f"{path}/ready"] = {**parameters, "get": readiness}
    if with_examples := [served.model.name for served in models if served.model.examples is not None]:
        examples = _operation("Adversarial examples that the page shows", _object("radii", "images"))
        paths["/examples/{model}"] = {**_parameters("/examples/{model}", with_examples), "get": examples}
    for served in models:
        path = f"/v2/models/{quote(served.model.name, safe='')}"
        paths[f"{path}/infer"] = paths[f"{path}/versions/1/infer"] = {"post": _infer_operation(served)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "robust-export serve: Open Inference (V2) protocol", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(summary: str, schema: dict[str, Any], media_type: str = "application/json") -> dict[str, Any]:
    responses = {status: {"description": "error", "content": _json(ERROR)} for status in ERROR_STATUSES}
    responses["200"] = {"description": summary, "content": {media_type: {"schema": schema}}}
    return {"summary": summary, "responses": responses}


def _infer_operation(served: ServedModel) -> dict[str, Any]:
    """Return the operation. The schema is for one image: JSON Schema cannot multiply by N."""
    model = served.model
    size = math.prod(model.input_shape)
    pixel = {"type": "number", "minimum": 0, "maximum": 1}
    tensor = _object(
        name={"const": PIXELS}, datatype={"const": "FP32"}, shape={"const": [1, *model.input_shape]},
        data={"type": "array", "items": pixel, "minItems": size, "maxItems": size},
    )  # fmt: skip
    output = _object(name={"enum": ["logits", "probabilities", "labels"]})
    request = _object(inputs={"type": "array", "items": tensor, "minItems": 1, "maxItems": 1})
    request["properties"]["id"] = {"type": "string", "maxLength": 256}
    request["properties"]["outputs"] = {"type": "array", "items": output, "maxItems": 1}
    operation = _operation("Run inference", _object("model_name", "model_version", "outputs"))
    operation["requestBody"] = {"required": True, "content": _json(request)}
    return operation


def _parameters(path: str, models: Sequence[str]) -> dict[str, Any]:
    """Return the path parameters that occur in `path`."""
    schemas = {"model": {"enum": list(models)}, "version": {"const": "1"}}
    return {
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": schema}
            for name, schema in schemas.items()
            if f"{{{name}}}" in path
        ]
    }


def _object(*names: str, **schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with required keys: `names` of any type, `schemas` of a given one."""
    properties: dict[str, Any] = {name: {} for name in names} | schemas
    return {"type": "object", "required": list(properties), "properties": properties}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
