"""Checks deploy/kserve/ by the models of KServe's SDK: `make kserve-test`, in an environment of its own.

Every field must be one that the SDK's model has, and every value of its type; within Kubernetes' own objects,
the models of its client judge.
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
    """Raise TypeError or ValueError unless a value is of a type, as the SDK names it."""
    if found := re.fullmatch(r"list\[(.+)]", kind):
        for number, one in enumerate(_is(value, list, where)):
            check(found[1], one, f"{where}[{number}]")
    elif found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for key, one in _is(value, dict, where).items():
            check(found[1], one, f"{where}.{key}")
    elif kind in PLAIN:
        _is(value, PLAIN[kind], where)
    else:
        _check_model(kind, value, where)


def _check_model(kind: str, value: Any, where: str) -> None:
    ours = getattr(importlib.import_module("kserve"), kind, None)
    if ours is None or hasattr(ours, "model_validate"):
        model = getattr(importlib.import_module("kubernetes.client"), kind)
        model.model_validate(_is(value, dict, where))
        return
    fields = {there: here for here, there in ours.attribute_map.items()}
    for key, one in _is(value, dict, where).items():
        if key not in fields:
            raise ValueError(f"{where}.{key} is no field of {kind}")
        check(ours.openapi_types[fields[key]], one, f"{where}.{key}")
    ours(**{fields[key]: one for key, one in value.items()})  # which asks for the fields that must be there


def _is(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{where} is {value!r}, expected {kind.__name__}")
    return value


def faults(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return copies of a manifest, each with a fault that the check must see."""
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
        for fault in faults(document):
            try:
                check(KINDS[document["kind"]], fault)
            except (TypeError, ValueError):
                continue
            raise SystemExit(f"the check saw no fault in {fault}")
    print(f"{len(documents)} manifests are what KServe's SDK takes")


if __name__ == "__main__":
    main()
