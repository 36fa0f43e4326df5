"""The command line, `optforge`: options and help here, work elsewhere."""

from optforge.experiments.cli.commands import app, main

__all__ = ["app", "main"]
