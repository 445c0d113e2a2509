"""Lets `python -m robust_export` stand for `robust-export`."""

from robust_export.cli import cli

cli(prog_name="robust-export")
