"""The command line: read options, call the library, print what it returns.

`robust_export.cli.main` collects the commands of `robust_export.cli.commands`.
"""

from robust_export.cli.main import cli

__all__ = ["cli"]
