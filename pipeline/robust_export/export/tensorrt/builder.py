"""Parse a graph into a TensorRT network, and build engines from it.

Networks are strongly typed: the graph alone sets the precision, no builder flag changes it.
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

HARDWARE_COMPATIBILITY = ("ampere_plus", "same_compute_capability")
GIB = 1 << 30


@dataclass(frozen=True)
class Batch:
    """The batch sizes of an engine: smallest, the one to optimise for, largest."""

    min: int = 1
    opt: int = 32
    max: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InvalidValue(
                f"batch is {self.min},{self.opt},{self.max}; expected the smallest, the optimised and the "
                "largest batch size in ascending order, each 1 or more, such as 1,32,256"
            )


@dataclass(frozen=True)
class Options:
    """Options of a build.

    Attributes:
        tf32: allow float32 products to be rounded to TF32 (10 bits of mantissa); verification's fp32 criteria
            may then fail.
        workspace: GiB of GPU memory per layer; None is TensorRT's default.
        version_compatible: build an engine that later versions of TensorRT run.
        hardware_compatible: build an engine that other GPUs run: one of HARDWARE_COMPATIBILITY, or None.
        timing_cache: a file of layer timings, read if it exists and written.
    """

    batch: Batch = Batch()
    tf32: bool = False
    workspace: float | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.workspace is not None and not self.workspace > 0:
            raise InvalidValue(f"workspace is {self.workspace} GiB; expected more than 0")
        if self.hardware_compatible not in (None, *HARDWARE_COMPATIBILITY):
            raise unknown("hardware compatibility", str(self.hardware_compatible), HARDWARE_COMPATIBILITY)

    def facts(self) -> dict[str, Any]:
        """Return the options that change the engine, for the manifest."""
        names = ("tf32", "workspace", "version_compatible", "hardware_compatible")
        return {name: getattr(self, name) for name in names}


class BuildRefused(ArtifactError):
    """TensorRT cannot build an engine of this network for a compute capability that it supports."""


def check_options(variant: Variant, options: Options) -> None:
    """Raise ArtifactError for an option that the variant does not support."""
    level = (options.hardware_compatible or "none").upper()
    rtx = variant.name == "rtx"
    unsupported = None
    if options.timing_cache and rtx:
        unsupported = "timing cache (it measures nothing during a build): omit --timing-cache"
    elif options.version_compatible and rtx:
        unsupported = "engines for later versions (it has no lean runtime): omit --version-compatible"
    elif options.hardware_compatible and rtx:
        unsupported = "hardware compatibility: omit --hardware-compatible, or choose a --compute-capability"
    elif options.hardware_compatible and variant.flag("HardwareCompatibilityLevel", level) is None:
        unsupported = f"hardware compatibility {options.hardware_compatible}: omit --hardware-compatible"
    if unsupported:
        raise ArtifactError(f"{variant.title} has no {unsupported}, or use another --flavor")


class Network:
    """A parsed network, together with the builder and parser that it refers to.

    Raises:
        ArtifactError: if TensorRT cannot start or refuses the graph, with its reason.
    """

    def __init__(self, variant: Variant, graph: Graph) -> None:
        trt = variant.trt
        self.variant, self.graph = variant, graph
        variant.logger.take()
        try:
            self.builder = trt.Builder(variant.logger)
        except Exception as error:  # pybind11 raises several types
            raise ArtifactError(
                f"{variant.title} cannot start: {variant.logged_errors()} ({reason(error)}). It needs a GPU "
                "and its driver; TensorRT for RTX builds without a GPU: --flavor rtx"
            ) from error
        typed = variant.flag("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")  # TensorRT 11's only mode
        self.network = self.builder.create_network(0 if typed is None else 1 << int(typed))
        self.parser = trt.OnnxParser(self.network, variant.logger)
        override = variant.flag("OnnxParserFlag", "ENABLE_PLUGIN_OVERRIDE")
        if override is not None and graph.plugin != "none":
            self.parser.set_flag(override)
        if not self.parser.parse(graph.content()):
            raise ArtifactError(
                f"{variant.title} does not take {graph.source}: {self._parse_error()}. Export the file "
                "again with `robust-export onnx`, or use --plugin none"
            )

    def build(self, options: Options, capability: Any | None, monitor: Monitor) -> bytes:
        """Return a serialised engine.

        Args:
            capability: a trt.ComputeCapability; None if the variant builds for this machine's GPU only.

        Raises:
            BuildRefused: if TensorRT builds no engine, with its reason.
            ArtifactError: if TensorRT refuses an option.
            KeyboardInterrupt: on Ctrl-C, after TensorRT has stopped.
        """
        config = self.builder.create_builder_config()
        self._configure(config, options)
        if capability is not None:
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(capability, 0):
                raise ArtifactError(
                    f"{self.variant.title} does not take {capability}: {self.variant.logged_errors()}"
                )
        config.progress_monitor = monitor.progress_monitor(self.variant.trt)
        cache = self._load_timing_cache(config, options.timing_cache) if options.timing_cache else None
        self.variant.logger.take()
        plan = monitor.run(lambda: self.builder.build_serialized_network(self.network, config))
        if plan is None:
            raise BuildRefused(
                f"{self.variant.title} builds no engine of {self.graph.source}: "
                f"{self.variant.logged_errors()}"
            )
        if cache is not None and options.timing_cache:  # `cache` must live until the build is done
            write_atomically(options.timing_cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def _parse_error(self) -> str:
        """Return the first node that the parser refuses, and why."""
        logged = self.variant.logger.take()
        errors = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
        if not errors:
            return str(logged or "it gave no reason")
        node = f"{errors[0].node_operator()} {errors[0].node_name()}".strip()
        text = logged if logged.startswith("Sparta's plugin") else " ".join(errors[0].desc().split())
        return f"{node}: {text}" if node else text

    def _configure(self, config: Any, options: Options) -> None:
        trt, variant = self.variant.trt, self.variant
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector needs it
        tf32 = trt.BuilderFlag.TF32
        config.set_flag(tf32) if options.tf32 else config.clear_flag(tf32)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, round(options.workspace * GIB))
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            level = variant.flag("HardwareCompatibilityLevel", options.hardware_compatible.upper())
            config.hardware_compatibility_level = level
        self._add_profile(config, options.batch)

    def _add_profile(self, config: Any, batch: Batch) -> None:
        """Add the optimisation profile of the batch sizes."""
        profile = self.builder.create_optimization_profile()
        for i in range(self.network.num_inputs):
            value = self.network.get_input(i)
            sizes = tuple(value.shape)[1:]
            profile.set_shape(value.name, (batch.min, *sizes), (batch.opt, *sizes), (batch.max, *sizes))
        if config.add_optimization_profile(profile) < 0:
            raise ArtifactError(
                f"{self.variant.title} does not take batches of {batch.min} to {batch.max}: "
                f"{self.variant.logged_errors()}"
            )

    def _load_timing_cache(self, config: Any, file: Path) -> Any:
        """Return the configuration's timing cache, with the file's timings if it exists."""
        editable = self.variant.flag("BuilderFlag", "EDITABLE_TIMING_CACHE")
        if editable is not None:
            config.set_flag(editable)
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise ArtifactError(
                f"{file} is not a timing cache of {self.variant.title} on this GPU: "
                f"{self.variant.logged_errors()}; choose another file"
            )
        return cache
