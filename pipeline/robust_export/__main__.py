"""Run the command line: `python -m robust_export` is the same as `robust-export`."""

from robust_export.cli.main import cli

cli(prog_name="robust-export")
