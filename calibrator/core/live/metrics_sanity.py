"""Whether a metrics page belongs to the engine that our requests run on. Only visible while they run.

| sign, with our requests in flight | meaning |
|---|---|
| nothing on the page changes for `FROZEN_S`, while our own count changes `MOVES` times | a proxy caches the page |
| `BLIND_SCRAPES` scrapes in a row do not count our requests (`gauge_scale.lacks_ours`) | another engine's page |

The problem stays until a page looks right again while our requests run. It is only reported: how a sweep treats such
gauges is up to `core.live.organic_load`, and guard and triggers ignore scrapes during probes anyway.

Called by `service.backend.fleet` with every scrape of a replica.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from calibrator.core.live.gauge_scale import BLIND_SCRAPES, lacks_ours
from calibrator.core.live.organic_load import LAG_S, OwnLoad
from calibrator.core.records.server_load import ServerLoad

FROZEN_S = 15.0
MOVES = 3

_REMEDY = "Set metrics_url to the engine's own page."
FROZEN = f"The metrics page does not change while our requests run: something caches it. {_REMEDY}"
BLIND = f"The metrics page does not count our requests: it belongs to another engine. {_REMEDY}"


@dataclass(frozen=True, slots=True)
class MetricsSanity:
    """State of the check of one replica's page."""

    problem: str = ""
    load: ServerLoad | None = None
    probes: int = 0
    ours: OwnLoad = field(default_factory=OwnLoad)
    since_s: float = 0.0  # of the unchanged page
    moves: int = 0  # changes of our own count since then
    fewer: int = 0  # consecutive scrapes without our requests

    def after(self, load: ServerLoad | None, probes: int, at_s: float) -> MetricsSanity:
        """After one scrape."""
        if load is None or probes < 1:
            return MetricsSanity(self.problem)
        in_flight, ours = load.in_flight_requests, self.ours.after(at_s, probes)
        is_short = in_flight is not None and lacks_ours(in_flight, ours.between(at_s - LAG_S, at_s)[0])
        fewer = self.fewer + 1 if is_short else 0
        now = replace(self, load=load, probes=probes, ours=ours, fewer=fewer)
        if load != self.load:
            changed = replace(now, since_s=at_s, moves=0)
            return replace(changed, problem=BLIND if fewer >= BLIND_SCRAPES else self.problem if fewer else "")
        now = replace(now, moves=self.moves + (probes != self.probes))
        is_frozen = now.moves >= MOVES and at_s - self.since_s >= FROZEN_S
        return replace(now, problem=FROZEN if is_frozen else now.problem)
