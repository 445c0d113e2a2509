"""The command line: a thin layer that reads options, calls the library, and shows what it returns."""

# Their commands join the group.
from robust_export.cli import comparison, machine, pipeline, serving, tensorrt, web  # noqa: F401
from robust_export.cli.base import cli

__all__ = ["cli"]
