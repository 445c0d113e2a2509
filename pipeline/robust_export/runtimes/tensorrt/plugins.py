"""Register Sparta's plugins with TensorRT."""

from __future__ import annotations

from pathlib import Path

from robust_export.errors import ArtifactError, BuildError
from robust_export.kernels.libraries import trt_library_info
from robust_export.kernels.paths import BUILD_HINT
from robust_export.runtimes.tensorrt.variants import Variant

PLUGINS = ("Sparta", "SpartaAdd")

_loaded: dict[str, Path] = {}  # variant's name to its registered library


def load_plugins(variant: Variant, library: Path) -> None:
    """Register the plugins Sparta and SpartaAdd of libsparta_trt.so, once per process.

    Raises:
        ArtifactError: if the library cannot be opened or lacks a plugin, or another one is registered.
    """
    library = library.resolve()
    registered = _loaded.get(variant.name)
    if registered == library:
        return
    if registered:
        raise ArtifactError(
            f"{library} cannot be registered: this process has the plugins of {registered}, and TensorRT "
            "takes them once; use that library or a new process"
        )
    try:
        trt_library_info(library)
    except BuildError as error:
        raise ArtifactError(f"{library} is not a usable plugin library: {error}; {BUILD_HINT}") from error
    registry = variant.trt.get_plugin_registry()
    variant.logger.take()
    handle = registry.load_library(str(library))
    creators = {(creator.name, creator.plugin_version) for creator in registry.all_creators}
    if handle is None or not creators >= {(name, "1") for name in PLUGINS}:
        raise ArtifactError(
            f"{variant.title} does not take the plugins of {library}: {variant.logged_errors()}. Expected a "
            f"library with {' and '.join(PLUGINS)}, version 1, neither registered before; {BUILD_HINT}"
        )
    _loaded[variant.name] = library
