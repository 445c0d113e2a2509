"""Import a TensorRT variant: `tensorrt`, or `rtx` for TensorRT for RTX."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from robust_export.errors import ArtifactError, reason, unknown
from robust_export.kernels.paths import cache_folder
from robust_export.runtimes.tensorrt import rtx_wheel
from robust_export.runtimes.tensorrt.logger import make_logger

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
INSTALL = {"tensorrt": "pip install 'robust-export[tensorrt]'", "rtx": "pip install 'robust-export[rtx]'"}
VARIANTS = ("auto", *MODULES)
MIN_MAJOR_VERSION = 10  # of tensorrt


@dataclass(frozen=True)
class Variant:
    """An imported TensorRT variant.

    Attributes:
        name: "tensorrt" or "rtx".
        trt: its Python module.
        logger: the process's only trt.ILogger of this variant; it keeps errors.
    """

    name: str
    trt: Any
    logger: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """Name and version, such as "TensorRT for RTX 1.7.1.116"."""
        return f"{'TensorRT for RTX' if self.name == 'rtx' else 'TensorRT'} {self.version}"

    @property
    def capabilities(self) -> dict[tuple[int, int], Any]:
        """The compute capabilities that it builds for without such a GPU; empty for `tensorrt`."""
        if self.name != "rtx":
            return {}
        members = self.trt.ComputeCapability.__members__.items()
        numbers = {name.removeprefix("SM"): member for name, member in members if name.startswith("SM")}
        return {(int(number[:-1]), int(number[-1])): member for number, member in numbers.items()}

    def flag(self, enum: str, name: str) -> Any | None:
        """Return a member of an enum of `trt`, such as TF32 of BuilderFlag; None if this version lacks it."""
        return getattr(getattr(self.trt, enum, None), name, None)

    def logged_errors(self) -> str:
        """Return the errors logged since the last call, in a line or two, and clear them."""
        return self.logger.take() or "it gave no reason"


def load_variant(name: str = "auto") -> Variant:
    """Import a variant; "auto" is `tensorrt` if it is installed, else `rtx`.

    Raises:
        UnknownName: for another name.
        ArtifactError: if it is not installed, or cannot be used safely.
    """
    if name not in VARIANTS:
        raise unknown("TensorRT variant", name, VARIANTS)
    candidates = list(MODULES) if name == "auto" else [name]
    for candidate in candidates:
        if rtx_wheel.find_spec(MODULES[candidate]):
            return _import(candidate)
    modules = ", ".join(MODULES[candidate] for candidate in candidates)
    commands = " or ".join(INSTALL[candidate] for candidate in candidates)
    raise ArtifactError(f"TensorRT is not installed ({modules} cannot be imported): {commands}")


@functools.cache
def _import(name: str) -> Variant:
    if name == "rtx":
        rtx_wheel.open_parser(cache_folder())
    try:
        trt = importlib.import_module(MODULES[name])
    except Exception as error:  # a package without its libraries raises many types
        raise ArtifactError(
            f"{MODULES[name]} is installed but cannot be imported: {reason(error)}. Install it again: "
            f"{INSTALL[name]}"
        ) from error
    if name == "rtx":
        rtx_wheel.check_parser(cache_folder())
    elif int(str(trt.__version__).split(".")[0]) < MIN_MAJOR_VERSION:
        raise ArtifactError(
            f"tensorrt has version {trt.__version__}; expected {MIN_MAJOR_VERSION} or later, which has "
            f"strongly typed networks and IPluginV3: {INSTALL[name]}"
        )
    return Variant(name, trt, make_logger(trt))
