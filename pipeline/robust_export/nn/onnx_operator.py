"""Domain, name and version of the ONNX operator."""

DOMAIN, OPERATOR, VERSION = "ai.sparta", "Sparta", 1
