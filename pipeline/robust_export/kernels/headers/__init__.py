"""C++ headers of ONNX Runtime and TensorRT, whose Python packages do not include them."""
