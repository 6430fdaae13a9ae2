"""What gateways are told: stored before it is served, except where waiting would be unsafe.

| change | database works | database fails |
|---|---|---|
| lower cap | served, then stored | **served at once**, stored when the database is back |
| higher or equal cap | stored, then served | not served; stored and served when the database is back |

A raised cap that was served but never stored would be lost by a restart, and gateways would see it fall for no reason.
A lowered cap that waited for the database would let users suffer for it. Only the newest pending change is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from calibrator.core.snapshot import Recommendation
from calibrator.errors import StoreError
from calibrator.ports import Store


class Publisher:
    """Owns what is served."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._served: dict[str, Recommendation] = {}
        self._pending: dict[str, Recommendation] = {}
        self._log = structlog.get_logger()

    def adopt(self, stored: Iterable[Recommendation]) -> None:
        """What the store remembers is served at once after a restart."""
        self._served.update({recommendation.backend: recommendation for recommendation in stored})

    @property
    def served(self) -> Mapping[str, Recommendation]:
        return self._served

    @property
    def is_behind(self) -> bool:
        """Something waits for the database."""
        return bool(self._pending)

    async def publish(self, recommendation: Recommendation) -> None:
        known = self._served.get(recommendation.backend)
        if known is None or recommendation.cap < known.cap:
            self._served[recommendation.backend] = recommendation
        self._pending[recommendation.backend] = recommendation
        await self.retry()

    async def retry(self) -> None:
        """Store what waits; a failing database is logged and tried again at the next call."""
        for backend, recommendation in list(self._pending.items()):
            try:
                await self._store.add_recommendation(recommendation)
            except StoreError as error:
                self._log.warning("recommendation not stored yet", backend=backend, error=str(error))
                continue
            if self._pending.get(backend) is recommendation:
                del self._pending[backend]
            self._served[backend] = recommendation
            self._log.info("published", backend=backend, cap=recommendation.cap, state=recommendation.state.value)
