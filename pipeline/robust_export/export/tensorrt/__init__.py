"""Build TensorRT engines from a bundle's ONNX files."""
