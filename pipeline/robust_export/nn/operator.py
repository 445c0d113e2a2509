"""The operator's name in ONNX files, and its version there and in files of Sparta functions."""

DOMAIN, OPERATOR, VERSION = "ai.sparta", "Sparta", 1
