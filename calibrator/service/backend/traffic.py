"""Live traffic of one backend, kept in slices: what drift compares and the mirror workload is made of.

Only time without probes counts, and none within `AFTER_PROBES_S` of them: a request that ends is counted at its end,
and cancelled probes end late. A scrape is compared with one of the same replica up to a minute earlier; a replica that
does not answer, restarts, or was not scraped for `GAP_S` begins anew. What an engine did then is lost, not guessed.

Owned by the supervisor, one for each backend. Over a restart of the service the slices are kept
(`service.backend.checkpoints`); the running minute is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from calibrator.core.publish.checkpoint import TrafficCheckpoint, packed, unpacked
from calibrator.core.publish.fleet import FleetLook
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.workload.live_mix import LiveMix, mix_between, summed

SLICE_S = 900.0
STEP_S = 60.0  # between two differences
GAP_S = 10.0
AFTER_PROBES_S = 30.0


@dataclass(slots=True)
class _Replica:
    base: ServerLoad
    base_s: float
    last: ServerLoad
    last_s: float


@dataclass(slots=True)
class TrafficLog:
    """`observe` takes scrapes in order of time."""

    keep_s: float = 86_400.0
    _replicas: dict[str, _Replica] = field(default_factory=dict)
    _slices: deque[tuple[float, LiveMix]] = field(default_factory=deque)  # start (monotonic), mix
    _ignore_until_s: float = float("-inf")

    def observe(self, scrape: FleetLook, *, is_sweeping: bool) -> None:
        now_s = scrape.at_s
        if is_sweeping or scrape.probes_in_flight:
            self._ignore_until_s = now_s + AFTER_PROBES_S
        is_ignored = now_s < self._ignore_until_s
        loads = {} if is_ignored else {one.url: one.load for one in scrape.ready if one.load is not None}
        for url in [url for url in self._replicas if url not in loads]:
            self._close(self._replicas.pop(url))
        for url, load in loads.items():
            self._follow(url, load, now_s)
        while self._slices and self._slices[0][0] < now_s - self.keep_s - SLICE_S:
            self._slices.popleft()

    def checkpoint(self, now_s: float) -> TrafficCheckpoint:
        return packed([(now_s - start_s, mix) for start_s, mix in self._slices])

    def restore(self, checkpoint: TrafficCheckpoint, now_s: float) -> None:
        """Before the first scrape; what is known already is kept instead."""
        if not self._slices:
            self._slices.extend((now_s - ago_s, mix) for ago_s, mix in unpacked(checkpoint))

    def slices(self, now_s: float, over_s: float) -> Sequence[LiveMix]:
        """Those that began within the last `over_s`, oldest first."""
        return [mix for start_s, mix in self._slices if start_s >= now_s - over_s]

    def mix(self, now_s: float, over_s: float) -> LiveMix:
        return summed(self.slices(now_s, over_s))

    def _follow(self, url: str, load: ServerLoad, now_s: float) -> None:
        known = self._replicas.get(url)
        if known is None or now_s - known.last_s > GAP_S:
            self._replicas[url] = _Replica(load, now_s, load, now_s)
            return
        if known.last.process_start != load.process_start:
            self._close(known)
            self._replicas[url] = _Replica(load, now_s, load, now_s)
            return
        known.last, known.last_s = load, now_s
        if now_s - known.base_s >= STEP_S:
            self._close(known)
            known.base, known.base_s = load, now_s

    def _close(self, replica: _Replica) -> None:
        """What happened since its base goes into the slice."""
        seconds = replica.last_s - replica.base_s
        mix = mix_between(replica.base, replica.last, seconds) if seconds > 0.0 else None
        if mix is None:
            return
        start_s = replica.last_s - replica.last_s % SLICE_S
        if self._slices and self._slices[-1][0] >= start_s:
            newest_s, newest = self._slices.pop()
            self._slices.append((newest_s, summed((newest, mix))))
        else:
            self._slices.append((start_s, mix))
