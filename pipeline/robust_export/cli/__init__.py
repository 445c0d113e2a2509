"""The command line: a thin layer that reads options, calls the library, and shows what it returns."""

# Their commands join the group.
from robust_export.cli import (
    comparison,  # noqa: F401
    deployment,  # noqa: F401
    judging,  # noqa: F401
    machine,  # noqa: F401
    pipeline,  # noqa: F401
    serving,  # noqa: F401
    tensorrt,  # noqa: F401
    web,  # noqa: F401
)
from robust_export.cli.base import cli

__all__ = ["cli"]
