"""Engines of TensorRT, built from a bundle's ONNX files."""

from robust_export.export.tensorrt.builder import Batch, Options
from robust_export.export.tensorrt.bundle_engines import export_engine
from robust_export.export.tensorrt.engines import Engine, build_engine
from robust_export.export.tensorrt.graph import PLUGINS, Graph, read

__all__ = ["PLUGINS", "Batch", "Engine", "Graph", "Options", "build_engine", "export_engine", "read"]
