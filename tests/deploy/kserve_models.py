"""Checks deploy/kserve/*.yaml against the models of KServe's SDK (make kserve-test, in its own environment).

Every field must exist in the SDK's model and have its type; Kubernetes' own objects are checked by the
models of its client.
"""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kserve"
KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
PLAIN = {"str": str, "int": int, "bool": bool, "object": object, "ResourceQuantity": str}


def check(kind: str, value: Any, where: str = "") -> None:
    """Raise TypeError or ValueError unless a value has a type, named as in the SDK."""
    if match := re.fullmatch(r"list\[(.+)]", kind):
        for number, one in enumerate(_check_type(value, list, where)):
            check(match[1], one, f"{where}[{number}]")
    elif match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for key, one in _check_type(value, dict, where).items():
            check(match[1], one, f"{where}.{key}")
    elif kind in PLAIN:
        _check_type(value, PLAIN[kind], where)
    else:
        _check_model(kind, value, where)


def _check_model(kind: str, value: Any, where: str) -> None:
    model = getattr(importlib.import_module("kserve"), kind, None)
    if model is None or hasattr(model, "model_validate"):
        kubernetes_model = getattr(importlib.import_module("kubernetes.client"), kind)
        kubernetes_model.model_validate(_check_type(value, dict, where))
        return
    attributes = {field: attribute for attribute, field in model.attribute_map.items()}
    for key, one in _check_type(value, dict, where).items():
        if key not in attributes:
            raise ValueError(f"{where}.{key} is not a field of {kind}")
        check(model.openapi_types[attributes[key]], one, f"{where}.{key}")
    model(**{attributes[key]: one for key, one in value.items()})  # raises if a required field is missing


def _check_type(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{where} is {value!r}, expected {kind.__name__}")
    return value


def with_errors(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return copies of a manifest, each with an error that the check must find."""
    unknown, mistyped, within = (copy.deepcopy(document) for _ in range(3))
    unknown["spec"]["replica"] = 1
    if document["kind"] == "InferenceService":
        mistyped["spec"]["predictor"]["minReplicas"] = "1"
        within["spec"]["predictor"]["model"]["storageURI"] = "s3://x"
    else:
        mistyped["spec"]["containers"][0]["ports"][0]["containerPort"] = "8080"
        within["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    return [unknown, mistyped, within]


def main() -> None:
    files = sorted(MANIFESTS.glob("*.yaml"))
    documents = [one for file in files for one in yaml.safe_load_all(file.read_text())]
    for document in documents:
        check(KINDS[document["kind"]], document, document["metadata"]["name"])
        for copy_with_error in with_errors(document):
            try:
                check(KINDS[document["kind"]], copy_with_error)
            except (TypeError, ValueError):
                continue
            raise SystemExit(f"the check found no error in {copy_with_error}")
    print(f"{len(documents)} manifests match the models of KServe's SDK")


if __name__ == "__main__":
    main()
