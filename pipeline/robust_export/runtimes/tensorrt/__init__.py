"""Which TensorRT there is: `tensorrt`, or TensorRT for RTX, which builds engines without a GPU.

Both have one API, and each takes one logger and one library of plugins a process. Nothing here needs torch.
"""

from robust_export.runtimes.tensorrt.engine import count_plugins, deserialise, engine_layers
from robust_export.runtimes.tensorrt.gpu_info import gpu
from robust_export.runtimes.tensorrt.plugins import PLUGINS, load_plugins
from robust_export.runtimes.tensorrt.variants import FLAVORS, INSTALL, Flavor, find

__all__ = [
    "FLAVORS",
    "INSTALL",
    "PLUGINS",
    "Flavor",
    "count_plugins",
    "deserialise",
    "engine_layers",
    "find",
    "gpu",
    "load_plugins",
]  # fmt: skip
