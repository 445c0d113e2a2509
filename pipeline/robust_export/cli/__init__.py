"""The command line: a thin layer that reads options, calls the library, and shows what it returns."""

# Their commands join the group.
from robust_export.cli import (  # noqa: F401
    comparison,
    deployment,
    judging,
    machine,
    pipeline,
    serving,
    tensorrt,
    web,
)
from robust_export.cli.base import cli

__all__ = ["cli"]
