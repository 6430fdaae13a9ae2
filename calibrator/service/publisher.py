"""What gateways are told: stored before it is served, except where waiting would be unsafe.

| change | database works | database fails |
|---|---|---|
| lower cap | served, then stored | **served at once**, stored when the database is back |
| higher or equal cap | stored, then served | not served; stored and served when the database is back |

A raised cap that was served but never stored would be lost by a restart, and gateways would see it fall for no reason.
A lowered cap that waited for the database would let users suffer for it. Only the newest pending change is kept.

Nothing else ever waits for the database: recommendations and sweep records are put down here, and written in the
background, recommendations first. What could not be written is tried again every `RETRY_S`, and kept until then: the
newest state of `MAX_WAITING` sweeps. What waits is readable as if it were stored.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import structlog

from calibrator.core.snapshot import CapPoint, Recommendation
from calibrator.core.sweep_record import SweepRecord
from calibrator.ports import Clock, Store, Tenure

RETRY_S = 5.0
MAX_WAITING = 200  # sweep records; some 100 KB each
CLOSE_LIMIT_S = 5.0
TREND_POINTS = 24  # what a glance can take in

Item = TypeVar("Item", Recommendation, SweepRecord)


class Publisher:
    """Owns what is served."""

    def __init__(self, store: Store, clock: Clock, tenures: Mapping[str, Tenure]) -> None:
        """`tenures`: by backend, those in force."""
        self._store = store
        self._tenures = tenures
        self._clock = clock
        self._served: dict[str, Recommendation] = {}
        self._versions: dict[str, int] = {}  # newest one given out, stored or not
        self._pending: dict[str, Recommendation] = {}
        self._records: dict[str, SweepRecord] = {}
        self._one_writer = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None
        self._not_before_s = 0.0
        self._trends: dict[str, deque[CapPoint]] = {}
        self.changes = 0  # of what is served
        self._log = structlog.get_logger()

    @property
    def served(self) -> Mapping[str, Recommendation]:
        return self._served

    def newest(self, backend: str) -> Recommendation:
        """What is served, or will be as soon as it is stored."""
        return self._pending.get(backend) or self._served[backend]

    def adopt(self, stored: Iterable[Recommendation]) -> None:
        """What the store remembers is served at once after a restart."""
        for recommendation in stored:
            self._served[recommendation.backend] = recommendation
            self._versions[recommendation.backend] = recommendation.version
            self._note(recommendation)

    def publish(self, recommendation: Recommendation) -> None:
        """Serve now what must not wait; the rest is served once `flush` or `write_behind` has stored it."""
        backend = recommendation.backend
        version = max(recommendation.version, self._versions.get(backend, 0) + 1)  # that of a lost change is spent
        recommendation = replace(recommendation, version=version)
        self._versions[backend] = version
        known = self._served.get(backend)
        if known is None or recommendation.cap < known.cap:
            self._serve(recommendation)
        self._pending[backend] = recommendation

    def keep(self, record: SweepRecord) -> None:
        """Remember the newest state of a sweep."""
        self._records[record.sweep_id] = record
        if len(self._records) > MAX_WAITING:
            lost = self._records.pop(next(iter(self._records)))
            self._log.error("sweep lost: the database fails for too long", backend=lost.backend, sweep=lost.sweep_id)

    def look_back(self, newest_first: Sequence[Recommendation]) -> None:
        """After a restart: what was published before, of one backend."""
        if newest_first:
            past = (CapPoint(one.published_at, one.cap, one.state) for one in reversed(newest_first))
            self._trends[newest_first[0].backend] = deque(past, TREND_POINTS)

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
        return self._records.get(sweep_id) or await self._store.sweep(sweep_id)

    async def sweeps(self, backend: str, limit: int) -> Sequence[SweepRecord]:
        """Newest first. Raises StoreError."""
        known = {record.sweep_id: record for record in await self._store.sweeps(backend, limit)}
        known.update({record.sweep_id: record for record in self._records.values() if record.backend == backend})
        return sorted(known.values(), key=lambda record: (record.started_at, record.sweep_id), reverse=True)[:limit]

    # -------------------------------------------------------------------------------------------------- writing
    def write_behind(self) -> None:
        """Write what waits in the background; does nothing while that is under way, or too soon after a failure."""
        is_writing = self._writing is not None and not self._writing.done()
        has_work = bool(self._pending or self._records)
        if has_work and not is_writing and self._clock.monotonic() >= self._not_before_s:
            self._writing = asyncio.create_task(self.flush())

    async def flush(self) -> None:
        """Try to write all that waits now; never raises. A failure ends the pass for its kind."""
        async with self._one_writer:
            await self._drain(self._pending, self._store_recommendation, self._serve)
            await self._drain(self._records, self._store.save_sweep, lambda _: None)

    async def close(self) -> None:
        """Write what waits, as far as the database lets us in `CLOSE_LIMIT_S`."""
        tasks = [asyncio.create_task(self.flush()), *([] if self._writing is None else [self._writing])]
        await asyncio.wait(tasks, timeout=CLOSE_LIMIT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(
        self, waiting: dict[str, Item], write: Callable[[Item], Awaitable[None]], then: Callable[[Item], None]
    ) -> None:
        for key, item in list(waiting.items()):
            try:
                await write(item)
            except Exception as error:  # noqa: BLE001 - whatever one write does, the others and the service go on
                self._not_before_s = self._clock.monotonic() + RETRY_S
                self._log.warning("not stored yet", what=type(item).__name__, key=key, error=repr(error))
                if key in waiting:
                    waiting[key] = waiting.pop(key)  # the others have their turn before it
                return
            if waiting.get(key) is item:
                del waiting[key]
                then(item)

    async def _store_recommendation(self, recommendation: Recommendation) -> None:
        await self._store.add_recommendation(recommendation, self._tenures[recommendation.backend])

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
