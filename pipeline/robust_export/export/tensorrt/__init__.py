"""Engines of TensorRT, built from a bundle's ONNX files."""
