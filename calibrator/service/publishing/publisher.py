"""What gateways get: stored before it is served, except where waiting would be unsafe.

| change | database works | database fails |
|---|---|---|
| lower cap | served, then stored | **served at once**, stored when the database is back |
| higher or equal cap | stored, then served | not served; stored and served when the database is back |

A raised cap that was served but never stored would be lost by a restart, and gateways would see it fall for no reason.
A lowered cap that waited for the database would let users suffer for it. Only the newest pending change is kept.

Nothing else ever waits for the database: recommendations and sweep records are written behind, recommendations first,
and at most `MAX_WAITING` sweeps wait. What waits is readable as if it were stored.

**Several instances.** Only who holds the lease of a backend's engine group publishes, and everything is written under
the lease's epoch, which the database checks; the others serve what it stored.

| what an instance has when its lease ends | what becomes of it |
|---|---|
| ran out, but nobody took it (the database is out of reach) | nothing is written; goes on under the same epoch |
| taken over: a change that was never served | dropped: the new holder has the sweep's record, and decides itself |
| taken over: a lowering that is served but not stored | **stays served here**, and is forwarded to the new holder |

The new holder publishes such a lowering unless it measured since (`core.publish.lease.is_settled_by`). So a lowering is
lost only with the process that made it, before it reached the database; the new holder's guard sees the same users.

A new holder leaves `VERSION_GAP` versions free: those its predecessor gave out without storing them never name anything
else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import structlog

from calibrator.core.publish.lease import is_settled_by
from calibrator.core.publish.snapshot import CapPoint, Recommendation
from calibrator.core.records.sweep import SweepRecord
from calibrator.errors import StaleLeaseError, StoreError
from calibrator.ports.clock import Clock
from calibrator.ports.store import PublicationStore
from calibrator.service.publishing.leases import HeldLeases
from calibrator.service.publishing.store_health import StoreHealth
from calibrator.service.publishing.write_behind import WriteBehind

MAX_WAITING = 200  # sweep records; some 100 KB each
VERSION_GAP = 100
TREND_POINTS = 24  # what a glance can take in


class Publisher:
    """Owns what is served."""

    def __init__(self, store: PublicationStore, clock: Clock, leases: HeldLeases, health: StoreHealth) -> None:
        self._store = store
        self._leases = leases
        self._served: dict[str, Recommendation] = {}
        self._stored: dict[str, Recommendation] = {}  # newest that the store is known to have
        self._versions: dict[str, int] = {}  # newest one given out, stored or not
        self._asked: dict[str, int] = {}  # version that a write was begun of: it may have been done
        self._pending = WriteBehind(
            "recommendation", self._store_recommendation, clock, health, may_write=self._is_ours
        )
        self._records = WriteBehind("sweep", self._store_sweep, clock, health)
        self._trends: dict[str, deque[CapPoint]] = {}
        self.changes = 0  # of what is served
        self._log = structlog.get_logger()

    @property
    def served(self) -> Mapping[str, Recommendation]:
        return self._served

    def newest(self, backend: str) -> Recommendation:
        """What is served, or will be as soon as it is stored."""
        return self._pending.waiting.get(backend) or self._served[backend]

    def publish(self, recommendation: Recommendation) -> None:
        """Serve now what must not wait; the rest once `flush` or a later `tick` has stored it."""
        backend = recommendation.backend
        version = max(recommendation.version, self._versions.get(backend, 0) + 1)  # that of a lost change is spent
        recommendation = replace(recommendation, version=version)
        self._versions[backend] = version
        known = self._served.get(backend)
        if known is None or recommendation.cap < known.cap:
            self._serve(recommendation)
        self._pending.put(backend, recommendation)

    def keep(self, record: SweepRecord) -> None:
        """Remember the newest state of a sweep."""
        self._records.put(record.sweep_id, record)
        if len(self._records.waiting) > MAX_WAITING:
            lost = self._records.waiting[next(iter(self._records.waiting))]
            self._records.discard(lost.sweep_id)
            self._log.error("sweep lost: the database fails for too long", backend=lost.backend, sweep=lost.sweep_id)

    def look_back(self, newest_first: Sequence[Recommendation]) -> None:
        """After a restart: what was published before, of one backend."""
        if newest_first:
            past = (CapPoint(one.published_at, one.cap, one.state) for one in reversed(newest_first))
            self._trends[newest_first[0].backend] = deque(past, TREND_POINTS)

    # ------------------------------------------------------------------------------------------ other instances
    def adopt(self, stored: Iterable[Recommendation]) -> None:
        """What is stored is served at once after a restart."""
        for recommendation in stored:
            self._served[recommendation.backend] = self._stored[recommendation.backend] = recommendation
            self._versions[recommendation.backend] = recommendation.version
            self._note(recommendation)

    def serve_fallback(self, resting: Recommendation) -> None:
        """Serve this while nothing is stored and nothing may be published. Its version 0 is nobody's."""
        self._served.setdefault(resting.backend, replace(resting, version=0))

    def follow(self, stored: Recommendation) -> bool:
        """Serve what the holder stored, if that is news and we do not lead; True if so."""
        backend = stored.backend
        known = self._stored.get(backend)
        if known is not None and known.version >= stored.version:
            return False
        if self._is_ours(backend):
            return False  # read before we took the lease: `begin` knows better
        lowered = self._unstored_lowering(backend)
        self._pending.discard(backend)
        self._stored[backend] = stored
        self._versions[backend] = max(stored.version, self._versions.get(backend, 0))
        if lowered is not None and not is_settled_by(stored, lowered):
            return False
        self._serve(stored)
        return True

    def demote(self, backend: str) -> Recommendation | None:
        """Another instance holds the lease now. The lowering that must be forwarded to it, if there is one."""
        self._pending.discard(backend)
        return self._unstored_lowering(backend)

    def begin(self, backend: str, stored: Recommendation | None, *, is_sole: bool) -> None:
        """The lease was taken: `stored` is the newest there is, and what comes next stands above all before it."""
        if stored is None:
            return
        lowered = self._unstored_lowering(backend)
        self._pending.discard(backend)
        self._stored[backend] = stored
        gap = 0 if is_sole else VERSION_GAP
        self._versions[backend] = max(stored.version + gap, self._versions.get(backend, 0))
        if lowered is not None and not is_settled_by(stored, lowered):
            self.publish(lowered)
        elif self._served.get(backend) != stored:
            self._serve(stored)

    def _unstored_lowering(self, backend: str) -> Recommendation | None:
        served, stored = self._served.get(backend), self._stored.get(backend)
        return served if served is not None and stored is not None and served.cap < stored.cap else None

    # -------------------------------------------------------------------------------------------------- reading
    def trend(self, backend: str) -> tuple[CapPoint, ...]:
        """What was served of late, oldest first."""
        return tuple(self._trends.get(backend, ()))

    async def recommendations(self, backend: str, limit: int) -> Sequence[Recommendation]:
        """Newest first. Raises StoreError."""
        known = {one.version: one for one in await self._store.recommendations(backend, limit)}
        served = self._served.get(backend)
        if served is not None:
            known[served.version] = served
        return [known[version] for version in sorted(known, reverse=True)][:limit]

    async def sweep(self, sweep_id: str) -> SweepRecord | None:
        """Raises StoreError if the database must be asked and fails."""
        return self._records.waiting.get(sweep_id) or await self._store.sweep(sweep_id)

    async def samples(self, sweep_id: str) -> bytes | None:
        """Raises StoreError if the database must be asked and fails."""
        waiting = self._records.waiting.get(sweep_id)
        return waiting.samples if waiting is not None and waiting.samples else await self._store.samples(sweep_id)

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        """Newest first. Raises StoreError."""
        known = {record.sweep_id: record for record in await self._store.sweeps(backend, limit)}
        known.update(
            {record.sweep_id: record for record in self._records.waiting.values() if record.backend == backend}
        )
        return sorted(known.values(), key=lambda record: (record.started_at, record.sweep_id), reverse=True)[:limit]

    # -------------------------------------------------------------------------------------------------- writing
    def tick(self) -> None:
        """Write what waits in the background."""
        self._pending.tick()
        self._records.tick()

    async def flush(self) -> None:
        """Try to write all that waits now; never raises."""
        await self._pending.flush()
        await self._records.flush()

    async def close(self) -> None:
        """Write what waits, as far as the database lets us in `write_behind.CLOSE_LIMIT_S`."""
        await asyncio.gather(self._pending.close(), self._records.close())

    def _is_ours(self, backend: str) -> bool:
        return self._leases.lease_of(backend) is not None

    async def _store_recommendation(self, backend: str, recommendation: Recommendation) -> None:
        """A write whose answer was lost may have been done: check before it is repeated."""
        lease, version = self._leases.lease_of(backend), recommendation.version
        if lease is None:
            raise StoreError("The lease ran out meanwhile.")
        is_there = self._asked.get(backend) == version and recommendation in await self._store.latest_recommendations()
        self._asked[backend] = version
        if not is_there:
            try:
                await self._store.add_recommendation(recommendation, lease)
            except StaleLeaseError as error:
                self._log.warning("not published", backend=backend, why=str(error))
                self._leases.lost(backend)
                return
        if self._pending.waiting.get(backend) is recommendation:
            self._stored[backend] = recommendation
            self._serve(recommendation)

    async def _store_sweep(self, _sweep_id: str, record: SweepRecord) -> None:
        await self._pending.idle()  # what was found shall not be seen before what was published of it
        await self._store.save_sweep(record)

    def _serve(self, recommendation: Recommendation) -> None:
        known = self._served.get(recommendation.backend)
        self._served[recommendation.backend] = recommendation
        self.changes += 1
        if known is not recommendation:
            self._note(recommendation)
            state = recommendation.state.value
            self._log.info("published", backend=recommendation.backend, cap=recommendation.cap, state=state)

    def _note(self, recommendation: Recommendation) -> None:
        trend = self._trends.setdefault(recommendation.backend, deque(maxlen=TREND_POINTS))
        point = CapPoint(recommendation.published_at, recommendation.cap, recommendation.state)
        if not trend or trend[-1] != point:
            trend.append(point)
