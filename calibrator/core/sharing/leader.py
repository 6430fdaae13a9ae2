"""One cap, several calibrators: how the leader divides it among the pollers of all instances
(core.sharing.share_cache).

The division is `core.sharing.allocator`. Between it and a client stand the table, which instances read when they can,
and reports, which they write when they can. So two things take longer than with a single instance:

| | counted as held | until |
|---|---|---|
| a larger share | from before the table with it is written | |
| a smaller share, or none | the larger one still counts | no instance advertises it and no client applies it any more |

**No longer in use:** a share that the table replaced in version v is out of use when every instance

    has read v;
    or can no longer advertise anything to the client (it reported its shutdown, or has been unreachable for `KNOWN_S`,
    or for `FRESH_S` and did not list the client), and its last answer is obsolete: the client has polled another
    instance since, or would have expired.

Then the client holds the most that any report says, and at least its share.

An instance counts as unreachable from the time its last report was stored, by the database's clock, which is later than
the time the instance itself counts from. `ROOM_S` allows for clocks that run at different speeds. Clients listed by an
unreachable instance count as polling it: they do not expire while it may still answer them.

**Taking over:** the table says what every client may hold, and all clients in it count as just seen. Fencing is the
database's: a table is stored only under the lease, and only on top of the version it was computed from. A write whose
outcome is unknown may still arrive. So until the database shows a version with its number, ours or the one believed
lost, nothing is released: what the lost table grants was counted before, and stays counted.

Called by `service.publishing.joint_shares`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from calibrator.core.sharing.allocator import (
    EXPIRY_GAPS,
    LEAST_EXPIRY_S,
    LONGEST_GAP_S,
    Client,
    FairShareAllocator,
    HeldShare,
)
from calibrator.core.sharing.share_cache import FRESH_S, KNOWN_S, ClientReport, Grant, ShareTable, StoredReport

ROOM_S = 2.0
MISSED_S = 3.0  # without a report: unreachable
PAST_S = KNOWN_S + ROOM_S + EXPIRY_GAPS * LONGEST_GAP_S  # an older report means nothing any more


@dataclass(slots=True)
class _Instance:
    stored: StoredReport
    stored_s: float  # latest time of storing, on our clock
    not_before_s: float  # earliest
    before_s: float = -math.inf  # earliest, of the report before
    asked_s: float = -math.inf  # clients that polled since the last report did so after this
    listed: frozenset[str] = frozenset()

    @property
    def is_unreachable_from_s(self) -> float:
        return self.stored_s + MISSED_S

    def silenced_s(self, client: str) -> float:
        """From when on it cannot answer this client any more, if it sends no further report."""
        if self.stored.report.is_last:
            return self.stored_s
        return self.stored_s + ROOM_S + (KNOWN_S if client in self.listed else FRESH_S)


class ShareLeader:
    """Divides one cap. Mutable; times must not go backwards."""

    def __init__(self, cap: int, table: ShareTable, now_s: float) -> None:
        self._allocator = FairShareAllocator(cap, is_deferred=True)
        held = (HeldShare(one.client, one.held, float(one.gap_s), one.share) for one in table.grants)
        self._allocator.restore(held, now_s)
        self._table = table
        self._grants = {grant.client: grant for grant in table.grants}
        self._instances: dict[str, _Instance] = {}
        self._asked_s: dict[str, float] = {}  # of each client: the earliest time of its last poll
        self._offered = 0  # version of a table whose write has no known outcome; 0: none

    @property
    def in_use(self) -> int:
        return self._allocator.in_use

    def live(self) -> list[tuple[str, Client]]:
        return self._allocator.live()

    def sync(self, table: ShareTable) -> None:
        """What the database has: our previous table, or the one whose write had no known outcome."""
        if table.version >= self._offered:
            self._offered = 0
        if table.version != self._table.version:
            self._table = table
            self._grants = {grant.client: grant for grant in table.grants}

    def receive(self, reports: Mapping[str, StoredReport], asked_s: float, now_s: float) -> None:
        """All reports, by instance; the database was read between `asked_s` and `now_s`."""
        self._instances = {name: one for name, one in self._instances.items() if name in reports}
        for name, stored in reports.items():
            known = self._instances.get(name)
            if known is None or known.stored.number != stored.number:
                self._instances[name] = self._received(known, stored, asked_s, now_s)
            elif known.is_unreachable_from_s <= now_s and not stored.report.is_last:
                for caller in known.stored.report.clients:
                    if now_s < known.silenced_s(caller.client):
                        self._allocator.wait_on(caller.client, now_s)

    def _received(self, known: _Instance | None, stored: StoredReport, asked_s: float, now_s: float) -> _Instance:
        """A client that has polled since the previous report did so after the one before that was stored.

        An instance writes a report only once the previous one is stored, or else marks it as troubled.
        """
        listed = frozenset(one.client for one in stored.report.clients)
        instance = _Instance(stored, now_s - stored.age_s, asked_s - stored.age_s, listed=listed)
        if known is not None:
            instance.before_s = known.not_before_s
            if not (stored.is_troubled or known.stored.is_troubled):
                instance.asked_s = known.before_s
        for caller in stored.report.clients:
            if caller.has_polled or (known is None and now_s < instance.silenced_s(caller.client)):
                self._allocator.poll(caller.client, now_s, caller.in_flight, caller.rejected)
                self._asked_s[caller.client] = max(self._asked_s.get(caller.client, -math.inf), instance.asked_s)
        return instance

    def next(self, cap: int, now_s: float) -> ShareTable | None:
        """The table to write; None: nothing changed. After the write, call `sync`."""
        self._allocator.set_cap(cap, now_s)
        self._allocator.tend(now_s)
        if not self._offered:
            self._release(now_s)
        self._allocator.tell_all(now_s)
        version = self._table.version + 1
        grants = []
        for name, client in self._allocator.all():
            before = self._grants.get(name)
            since = version if before is None or before.share != client.advertised else before.since
            grants.append(Grant(name, client.advertised, client.held, since, math.ceil(client.gap_s)))
        self._asked_s = {grant.client: self._asked_s.get(grant.client, -math.inf) for grant in grants}
        made = ShareTable(version, self._allocator.clients, self._allocator.over_cap, tuple(grants))
        same = (made.clients, made.over_cap) == (self._table.clients, self._table.over_cap)
        if same and not self._offered and {grant.client: grant for grant in grants} == self._grants:
            return None
        self._offered = version
        return made

    def _release(self, now_s: float) -> None:
        listings = dict[str, list[ClientReport]]()
        for instance in self._instances.values():
            for caller in instance.stored.report.clients:
                if now_s < instance.silenced_s(caller.client):
                    listings.setdefault(caller.client, []).append(caller)
        for name, client in list(self._allocator.all()):
            granted = self._grants.get(name)
            if client.held == client.advertised or granted is None or granted.share != client.advertised:
                continue  # nothing to release, or the smaller share is not in the table yet
            if all(self._is_past(one, name, client, granted.since, now_s) for one in self._instances.values()):
                self._allocator.release(name, max((caller.held for caller in listings.get(name, ())), default=0))

    def _is_past(self, instance: _Instance, name: str, client: Client, since: int, now_s: float) -> bool:
        """Whether no larger share that this instance advertised to the client can still be in use."""
        if instance.stored.report.version >= since:
            return True
        silenced_s = instance.silenced_s(name)
        expiry_s = max(LEAST_EXPIRY_S, EXPIRY_GAPS * client.gap_s)
        return now_s >= silenced_s + expiry_s or self._asked_s.get(name, -math.inf) >= silenced_s
