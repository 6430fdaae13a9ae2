"""Does a metrics page tell of the engine that our requests run on? Only while they run can that be seen.

| sign, with requests of ours in flight | what it is |
|---|---|
| nothing on the page changes for `FROZEN_S`, while our own count changes `MOVES` times | a page that a proxy keeps |
| `BLIND_SCRAPES` scrapes in a row do not count our requests (`organic_load.lacks_ours`) | another engine's page |

The word stays until a page with requests of ours looks right again. It is shown and nothing else: what a sweep does
with such gauges is for `core.live.organic_load` to say, and to guards and triggers looks with probes do not count
anyway.

Pure; fed by `service.backend.fleet` with every look at a replica.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from calibrator.core.live.organic_load import BLIND_SCRAPES, LAG_S, OwnLoad, lacks_ours
from calibrator.core.records.server_load import ServerLoad

FROZEN_S = 15.0
MOVES = 3

_REMEDY = "Give the metrics_url of the engine itself."
FROZEN = f"The metrics page does not change although requests of ours run: something keeps an old one. {_REMEDY}"
BLIND = f"The metrics page does not count our requests: it is another engine's. {_REMEDY}"


@dataclass(frozen=True, slots=True)
class PageTrust:
    """What was seen of one replica's page."""

    problem: str = ""
    load: ServerLoad | None = None
    probes: int = 0
    ours: OwnLoad = field(default_factory=OwnLoad)
    since_s: float = 0.0  # of the unchanged page
    moves: int = 0  # of our own count since then
    fewer: int = 0  # looks in a row

    def after(self, load: ServerLoad | None, probes: int, at_s: float) -> PageTrust:
        """One look later."""
        if load is None or probes < 1:
            return PageTrust(self.problem)
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
