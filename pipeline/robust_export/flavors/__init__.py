"""Which TensorRT there is: `tensorrt`, or TensorRT for RTX, which builds engines without a GPU.

Both have one API, and each takes one logger and one library of plugins a process. Nothing here needs torch.
"""

from robust_export.flavors.engine import count_plugins, deserialise, engine_layers
from robust_export.flavors.finding import FLAVORS, INSTALL, Flavor, find
from robust_export.flavors.gpu import gpu
from robust_export.flavors.plugins import PLUGINS, load_plugins

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
