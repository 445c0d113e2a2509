"""Which TensorRT there is: `tensorrt`, or TensorRT for RTX, which builds engines without a GPU.

Both have one API, and each takes one logger and one library of plugins a process. Nothing here needs torch.
"""
