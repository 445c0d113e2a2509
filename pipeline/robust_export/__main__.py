"""Run `robust-export` as `python -m robust_export`."""

from robust_export.cli import cli

cli(prog_name="robust-export")
