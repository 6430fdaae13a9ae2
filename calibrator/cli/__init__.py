"""The commands. Each is a module of its own and imported when it is used, so that `--help` stays fast.

Does:      parses options, shows sweeps in the terminal, turns errors into messages and exit codes.
Comes in:  arguments, Ctrl-C.
Goes out:  text, JSON, files, an exit code (`errors.ExitCode`).
Imports:   everything below.
"""

from calibrator.cli.app import main

__all__ = ["main"]
