"""Registers Sparta's plugins with a TensorRT."""

from __future__ import annotations

from pathlib import Path

from robust_export.errors import ArtifactError, BuildError
from robust_export.kernels.libraries import open_trt_library
from robust_export.kernels.paths import HOW
from robust_export.runtimes.tensorrt.variants import Variant

PLUGINS = ("Sparta", "SpartaAdd")

_loaded: dict[str, Path] = {}  # the library that each flavor has


def load_plugins(flavor: Variant, library: Path) -> None:
    """Register the plugins Sparta and SpartaAdd of libsparta_trt.so, once a process.

    Raises:
        ArtifactError: if the library does not open or has not both, or another one was registered before.
    """
    library = library.resolve()
    before = _loaded.get(flavor.name)
    if before == library:
        return
    if before:
        raise ArtifactError(
            f"{library} cannot be registered: this process has the plugins of {before}, and TensorRT takes "
            "them once; use that library, or a new process"
        )
    try:
        open_trt_library(library)
    except BuildError as error:
        raise ArtifactError(f"{library} is no usable plugin library: {error}; {HOW}") from error
    registry = flavor.trt.get_plugin_registry()
    flavor.logger.take()
    handle = registry.load_library(str(library))
    creators = {(creator.name, creator.plugin_version) for creator in registry.all_creators}
    if handle is None or not creators >= {(name, "1") for name in PLUGINS}:
        raise ArtifactError(
            f"{flavor.title} does not take the plugins of {library}: {flavor.problem()}. Expected a library "
            f"with {' and '.join(PLUGINS)}, version 1, which nobody else registered; {HOW}"
        )
    _loaded[flavor.name] = library
