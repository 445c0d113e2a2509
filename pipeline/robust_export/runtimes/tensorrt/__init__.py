"""Run engines of TensorRT, or of TensorRT for RTX, which builds engines without a GPU.

Both variants have one API. Each takes one logger and one plugin library per process. No torch is needed.
"""
