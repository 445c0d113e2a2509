"""Parses a graph into TensorRT's network and builds engines of it.

Precision is in the graph: networks are strongly typed, and no flag of the builder asks for another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_export.errors import ArtifactError, InvalidValue, reason, unknown
from robust_export.export.tensorrt.graph import Graph
from robust_export.export.tensorrt.monitor import Monitor
from robust_export.runtimes.tensorrt.variants import Variant
from robust_export.utils.files import write_atomically

HARDWARE = ("ampere_plus", "same_compute_capability")
GIB = 1 << 30


@dataclass(frozen=True)
class Batch:
    """How many images an engine takes at once: at least, best, at most."""

    min: int = 1
    opt: int = 32
    max: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InvalidValue(
                f"batch is {self.min},{self.opt},{self.max}; expected the least, the best and the largest "
                "number of images, each 1 or more, in that order, such as 1,32,256"
            )


@dataclass(frozen=True)
class Options:
    """How an engine is built.

    Attributes:
        tf32: let float32 products be rounded to 10 bits, which verification's gates of fp32 need not admit.
        workspace: GiB of the GPU's memory that a layer may use; TensorRT's own limit if None.
        version_compatible: let later TensorRTs run the engine.
        hardware_compatible: let other GPUs run it: one of HARDWARE.
        timing_cache: a file of measurements, which is read where it is there, and written.
    """

    batch: Batch = Batch()
    tf32: bool = False
    workspace: float | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None
    timing_cache: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Return what changes the engine, for a manifest."""
        named = ("tf32", "workspace", "version_compatible", "hardware_compatible")
        return {name: getattr(self, name) for name in named}

    def __post_init__(self) -> None:
        if self.workspace is not None and not self.workspace > 0:
            raise InvalidValue(f"workspace is {self.workspace} GiB; expected more than 0")
        if self.hardware_compatible not in (None, *HARDWARE):
            raise unknown("hardware compatibility", str(self.hardware_compatible), HARDWARE)


class BuildRefused(ArtifactError):
    """TensorRT builds no engine of a network for a compute capability, though it knows both."""


def check_options(flavor: Variant, options: Options) -> None:
    """Raise ArtifactError for an option that a flavor has not."""
    level = (options.hardware_compatible or "none").upper()
    missing = None
    if options.timing_cache and flavor.name == "rtx":
        missing = "timing cache (it measures nothing when it builds): leave --timing-cache out"
    elif options.version_compatible and flavor.name == "rtx":
        missing = (
            "engines for later versions (it comes without a lean runtime): leave --version-compatible out"
        )
    elif options.hardware_compatible and flavor.name == "rtx":
        missing = "hardware compatibility: leave --hardware-compatible out, or choose a --compute-capability"
    elif options.hardware_compatible and flavor.flag("HardwareCompatibilityLevel", level) is None:
        missing = f"hardware compatibility {options.hardware_compatible}: leave it out"
    if missing:
        raise ArtifactError(f"{flavor.title} has no {missing}, or use another --flavor")


class Network:
    """A parsed network, with all that must live as long as it does.

    Raises:
        ArtifactError: if TensorRT cannot start or refuses the graph, with its reason.
    """

    def __init__(self, flavor: Variant, graph: Graph) -> None:
        trt = flavor.trt
        self.flavor, self.graph = flavor, graph
        flavor.logger.take()
        try:
            self.builder = trt.Builder(flavor.logger)
        except Exception as error:  # pybind's, of several kinds
            raise ArtifactError(
                f"{flavor.title} cannot start: {flavor.logged_errors()} ({reason(error)}). It needs a GPU and its "
                "driver; TensorRT for RTX builds without one: --flavor rtx"
            ) from error
        typed = flavor.flag("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")  # TensorRT 11 knows no other
        self.network = self.builder.create_network(0 if typed is None else 1 << int(typed))
        self.parser = trt.OnnxParser(self.network, flavor.logger)
        override = flavor.flag("OnnxParserFlag", "ENABLE_PLUGIN_OVERRIDE")
        if override is not None and graph.plugin != "none":
            self.parser.set_flag(override)
        if not self.parser.parse(graph.content()):
            raise ArtifactError(
                f"{flavor.title} does not take {graph.source}: {self._parse_problem()}. Export the file "
                "again with `robust-export onnx`, or use --plugin none"
            )

    def _parse_problem(self) -> str:
        logged = self.flavor.logger.take()
        errors = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
        if not errors:
            return str(logged or "it gave no reason")
        where = f"{errors[0].node_operator()} {errors[0].node_name()}".strip()
        text = logged if logged.startswith("Sparta's plugin") else " ".join(errors[0].desc().split())
        return f"{where}: {text}" if where else text

    def build(self, options: Options, capability: Any | None, monitor: Monitor) -> bytes:
        """Return the plan of an engine.

        Args:
            capability: of trt.ComputeCapability; None for the GPU that is there, where there is no choice.

        Raises:
            BuildRefused: if TensorRT builds none, with its reason.
            ArtifactError: if it does not take an option.
            KeyboardInterrupt: if it was interrupted; TensorRT has stopped then.
        """
        config = self.builder.create_builder_config()
        self._configure(config, options)
        if capability is not None:
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(capability, 0):
                raise ArtifactError(
                    f"{self.flavor.title} does not take {capability}: {self.flavor.logged_errors()}"
                )
        config.progress_monitor = monitor.listener(self.flavor.trt)
        cache = self._timing_cache(config, options.timing_cache) if options.timing_cache else None
        self.flavor.logger.take()
        plan = monitor.run(lambda: self.builder.build_serialized_network(self.network, config))
        if plan is None:
            raise BuildRefused(
                f"{self.flavor.title} builds no engine of {self.graph.source}: {self.flavor.logged_errors()}"
            )
        if cache is not None and options.timing_cache:
            write_atomically(options.timing_cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def _configure(self, config: Any, options: Options) -> None:
        trt, flavor = self.flavor.trt, self.flavor
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what the inspector needs
        tf32 = trt.BuilderFlag.TF32
        config.set_flag(tf32) if options.tf32 else config.clear_flag(tf32)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, round(options.workspace * GIB))
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            level = flavor.flag("HardwareCompatibilityLevel", options.hardware_compatible.upper())
            config.hardware_compatibility_level = level
        profile = self.builder.create_optimization_profile()
        for i in range(self.network.num_inputs):
            value = self.network.get_input(i)
            sizes, batch = tuple(value.shape)[1:], options.batch
            profile.set_shape(value.name, (batch.min, *sizes), (batch.opt, *sizes), (batch.max, *sizes))
        if config.add_optimization_profile(profile) < 0:
            raise ArtifactError(
                f"{flavor.title} does not take batches of {options.batch.min} to {options.batch.max}: "
                f"{flavor.logged_errors()}"
            )

    def _timing_cache(self, config: Any, file: Path) -> Any:
        """Give the builder the file's measurements, or none yet."""
        editable = self.flavor.flag("BuilderFlag", "EDITABLE_TIMING_CACHE")
        if editable is not None:
            config.set_flag(editable)
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise ArtifactError(
                f"{file} is no timing cache of {self.flavor.title} on this GPU: {self.flavor.logged_errors()}; "
                "choose another file"
            )
        return cache
