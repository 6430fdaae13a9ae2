"""A store in memory: the port's contract without a file, a thread or an await that waits (usable on virtual time)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibrator.core.shares import HeldShare
from calibrator.core.snapshot import Override, Recommendation
from calibrator.core.sweep_record import SweepOutcome, SweepRecord
from calibrator.errors import StoreError
from calibrator.stores.retention import FAILED_FACTOR, interrupted


class MemoryStore:
    """Implements `ports.Store`. Set `failure` and every method raises it, as a broken database would.

    What was stored survives `close` and `open`, like a file: pass the same object to a "restarted" service.
    """

    def __init__(self, keep_sweeps: int = 200) -> None:
        self.failure: StoreError | None = None
        self.is_open = False
        self._keep_sweeps = keep_sweeps
        self._recommendations: dict[tuple[str, int], Recommendation] = {}
        self._sweeps: dict[str, SweepRecord] = {}
        self._shares: dict[tuple[str, bool], tuple[HeldShare, ...]] = {}
        self._overrides: dict[str, Override] = {}

    async def open(self) -> None:
        self._may_fail()
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def add_recommendation(self, recommendation: Recommendation) -> None:
        self._may_fail()
        key = (recommendation.backend, recommendation.version)
        if key in self._recommendations:
            raise StoreError(f"Version {recommendation.version} of '{recommendation.backend}' exists already.")
        self._recommendations[key] = recommendation

    async def latest_recommendations(self) -> Sequence[Recommendation]:
        self._may_fail()
        newest = {
            backend: self._recommendations[backend, version] for backend, version in sorted(self._recommendations)
        }
        return tuple(newest.values())

    async def save_sweep(self, record: SweepRecord) -> None:
        self._may_fail()
        self._sweeps[record.sweep_id] = record
        if record.outcome is not None:
            self._forget(record.backend)

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        self._may_fail()
        return self._sweeps.get(sweep_id)

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        self._may_fail()
        return tuple(self._newest_first(backend)[:limit])

    async def interrupt_running_sweeps(self, now: float) -> int:
        self._may_fail()
        running = [record for record in self._sweeps.values() if record.outcome is None]
        for record in running:
            self._sweeps[record.sweep_id] = interrupted(record, now)
        return len(running)

    async def save_shares(self, backend: str, held: Sequence[HeldShare], *, per_replica: bool) -> None:
        self._may_fail()
        self._shares[backend, per_replica] = tuple(sorted(held, key=lambda share: share.client))

    async def shares(self, backend: str, *, per_replica: bool) -> Sequence[HeldShare]:
        self._may_fail()
        return self._shares.get((backend, per_replica), ())

    async def save_override(self, backend: str, override: Override | None) -> None:
        self._may_fail()
        self._overrides.pop(backend, None)
        if override is not None:
            self._overrides[backend] = override

    async def overrides(self) -> Mapping[str, Override]:
        self._may_fail()
        return dict(self._overrides)

    def _newest_first(self, backend: str) -> list[SweepRecord]:
        own = [record for record in self._sweeps.values() if record.backend == backend]
        return sorted(own, key=lambda record: (record.started_at, record.sweep_id), reverse=True)

    def _forget(self, backend: str) -> None:
        ended = [record for record in self._newest_first(backend) if record.outcome is not None]
        good = [record for record in ended if record.outcome is SweepOutcome.CALIBRATED]
        failed = [record for record in ended if record.outcome is not SweepOutcome.CALIBRATED]
        for record in good[self._keep_sweeps :] + failed[FAILED_FACTOR * self._keep_sweeps :]:
            del self._sweeps[record.sweep_id]

    def _may_fail(self) -> None:
        if self.failure is not None:
            raise self.failure
