"""The command line: a thin layer that reads options, calls the library, and shows what it returns."""

from robust_export.cli import machine, pipeline, serving  # noqa: F401 (their commands join the group)
from robust_export.cli.base import cli

__all__ = ["cli"]
