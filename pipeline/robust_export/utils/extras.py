"""The optional dependencies of pyproject.toml, by extra."""

from __future__ import annotations

EXTRAS = {
    "train": {
        "jinja2": "jinja2", "matplotlib": "matplotlib", "onnxscript": "onnxscript",
        "pyautoattack": "pyautoattack", "scipy": "scipy", "sklearn": "scikit-learn", "timm": "timm",
        "torch": "torch", "torchvision": "torchvision",
    },
    "serve": {
        "google.protobuf": "protobuf", "grpc": "grpcio", "httptools": "httptools",
        "prometheus_client": "prometheus-client", "starlette": "starlette", "uvicorn": "uvicorn",
    },
    "track": {"accelerate": "accelerate", "tensorboard": "tensorboard"},
}  # fmt: skip
"""{extra: {import name: distribution name}}"""
