"""Errors sorted by remedy.

| class | what the caller can do | exit code |
|---|---|---|
| ConfigurationError | change the configuration or the command line; retrying does not help | 2 |
| UnreachableError | fix the network or the credentials, or wait; then retry | 3 |
| GeneratorError | *we* failed: a worker died, the machine is too slow | 4 |
| StoreError | fix the database, then restart or wait | 1 |

A failed probe request is never an exception: it is data (`core.records.sample.Failure`), because it says something
about the backend. Foreign exceptions are translated once, in the adapter that caught them.
"""

from __future__ import annotations

from enum import IntEnum

QUOTA_REMEDY = (  # met in the preflight and in the middle of a sweep
    "A quota per time hides what the engine can take: give the engine's own address, or a key without such a quota."
)


class ExitCode(IntEnum):
    """What a shell or a CI job sees; fixed by contract (README, "Commands")."""

    CALIBRATED = 0
    UNEXPECTED = 1
    CONFIGURATION = 2
    UNREACHABLE = 3
    INCONCLUSIVE = 4
    INFEASIBLE = 5
    INTERRUPTED = 130


class CalibratorError(Exception):
    """Base class: one sentence of cause, one of remedy, and an exit code."""

    exit_code = ExitCode.UNEXPECTED

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause if not remedy else f"{cause} {remedy}")
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[CalibratorError], tuple[str, str]]:
        # Errors cross the pipe between the sweep's process and the service.
        return type(self), (self.cause, self.remedy)


class ConfigurationError(CalibratorError):
    """The configuration, the command line or a request body is wrong."""

    exit_code = ExitCode.CONFIGURATION


class UnreachableError(CalibratorError):
    """The backend cannot be reached, or rejects our credentials."""

    exit_code = ExitCode.UNREACHABLE


class GeneratorError(CalibratorError):
    """The load generator itself failed; nothing was learned about the backend."""

    exit_code = ExitCode.INCONCLUSIVE


class StoreError(CalibratorError):
    """State cannot be read or written."""


class StoreLockedError(StoreError):
    """Another instance owns this database file."""

    exit_code = ExitCode.CONFIGURATION


class StaleLeaseError(StoreError):
    """Another instance has taken over the lease; nothing was published."""
