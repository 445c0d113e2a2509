"""Export a trained network: to ONNX files, and from those to TensorRT engines."""
