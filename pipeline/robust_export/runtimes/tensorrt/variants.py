"""An imported TensorRT, and how to get one."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from robust_export.errors import ArtifactError, reason, unknown
from robust_export.runtimes.tensorrt import rtx_wheel
from robust_export.runtimes.tensorrt.logger import make_logger

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
INSTALL = {"tensorrt": "pip install 'robust-export[tensorrt]'", "rtx": "pip install 'robust-export[rtx]'"}
VARIANTS = ("auto", *MODULES)
OLDEST = 10  # major version of TensorRT


@dataclass(frozen=True)
class Variant:
    """An imported TensorRT.

    Attributes:
        name: "tensorrt" or "rtx".
        trt: its module.
        logger: the process's only one, a trt.ILogger that keeps what is wrong.
    """

    name: str
    trt: Any
    logger: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """What to call it: "TensorRT for RTX 1.7.1.116"."""
        return f"{'TensorRT for RTX' if self.name == 'rtx' else 'TensorRT'} {self.version}"

    @property
    def capabilities(self) -> dict[tuple[int, int], Any]:
        """The compute capabilities that an engine may be built for without such a GPU: none of TensorRT's."""
        if self.name != "rtx":
            return {}
        members = self.trt.ComputeCapability.__members__.items()
        numbers = {name.removeprefix("SM"): member for name, member in members if name.startswith("SM")}
        return {(int(number[:-1]), int(number[-1])): member for number, member in numbers.items()}

    def flag(self, kind: str, name: str) -> Any | None:
        """Return a flag, such as BuilderFlag's TF32; None where this version has none of that name."""
        return getattr(getattr(self.trt, kind, None), name, None)

    def problem(self) -> str:
        """Return the errors that were logged since the last call, in a line or two, and forget them."""
        return self.logger.take() or "it gave no reason"


def find(flavor: str = "auto") -> Variant:
    """Return the TensorRT that is asked for; "auto" is `tensorrt` where it is installed, else that for RTX.

    Raises:
        UnknownName: for another flavor.
        ArtifactError: if it is not installed, or cannot be used safely.
    """
    if flavor not in VARIANTS:
        raise unknown("flavor of TensorRT", flavor, VARIANTS)
    wanted = list(MODULES) if flavor == "auto" else [flavor]
    for name in wanted:
        if rtx_wheel.spec(MODULES[name]):
            return _import(name)
    how = " or ".join(INSTALL[name] for name in wanted)
    raise ArtifactError(
        f"TensorRT is not installed ({', '.join(MODULES[name] for name in wanted)} cannot be imported): {how}"
    )


@functools.cache
def _import(name: str) -> Variant:
    if name == "rtx":
        rtx_wheel.open_parser()
    try:
        trt = importlib.import_module(MODULES[name])
    except Exception as error:  # a package without its libraries raises many kinds
        raise ArtifactError(
            f"{MODULES[name]} is installed but cannot be imported: {reason(error)}. Install it again: "
            f"{INSTALL[name]}"
        ) from error
    if name == "rtx":
        rtx_wheel.check_parser()
    elif int(str(trt.__version__).split(".")[0]) < OLDEST:
        raise ArtifactError(
            f"tensorrt is of version {trt.__version__}; expected {OLDEST} or later, which has strongly typed "
            f"networks and IPluginV3: {INSTALL[name]}"
        )
    return Variant(name, trt, make_logger(trt))
