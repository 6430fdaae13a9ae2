"""The verbs. Each lives in a module of its own and is imported when it is used, so that `--help` stays quick."""

from calibrator.cli.app import main

__all__ = ["main"]
