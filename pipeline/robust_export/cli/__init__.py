"""The command line: read options, call the library, print what it returns.

`main` finds the commands in the modules of `commands`.
"""

from robust_export.cli.main import cli

__all__ = ["cli"]
