"""Parts of a sweep that a test does not limits about: a server as expected, no metrics, nobody who listens."""

from __future__ import annotations

from calibrator.core.publish.snapshot import Progress
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.records.sweep import SweepRecord
from calibrator.core.workload.classes import TokenScale, Workload
from calibrator.ports.backend import BackendFacts


class Inspector:
    async def inspect(self, workload: Workload) -> BackendFacts:
        return BackendFacts("m", TokenScale(), forces_length=True)


class NoTelemetry:
    problem = ""

    async def scrape(self) -> ServerLoad | None:
        return None

    async def close(self) -> None: ...


class Listener:
    def progress(self, progress: Progress) -> None: ...

    def partial(self, record: SweepRecord) -> None: ...
