"""The verbs. Each lives in a module of its own and is imported when it is used, so that `--help` stays quick.

Does:      parses options, shows sweeps in the terminal, turns errors into sentences and exit codes.
Comes in:  arguments, Ctrl-C.
Goes out:  text, JSON, files, an exit code (`errors.ExitCode`).
Imports:   everything below.
"""

from calibrator.cli.app import main

__all__ = ["main"]
