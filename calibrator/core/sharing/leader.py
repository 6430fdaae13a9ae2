"""One cap, several calibrators: how the leading instance divides it among the pollers of all
(core.sharing.share_cache).

The book is `core.sharing.allocator`; between it and a client stand the table, which instances read when they can, and
reports, which they write when they can. So two things take longer here than with one instance:

| | is counted | ends |
|---|---|---|
| a larger share | as held, before the table that tells it is written | |
| a smaller share, or none | the larger one is held on | when nobody tells or has it any longer, see below |

**Nobody any longer** means, for a share that the table has since version v, that every instance

    has read v;
    or can tell nobody, or not this client, anything any more (it said good-bye, or is out of sight for `KNOWN_S`, or
    for `FRESH_S` and did not list the client), and what it told last is past: the client has asked elsewhere since, or
    would have expired.

Then the client holds the most that any report says of it, and at least its share.

Out of sight is counted from when its last report was stored, by the database's clock, which is later than the instance
itself counts from. `ROOM_S` is for clocks that run at different speeds. Clients that an instance out of sight listed
count as polling there: they do not expire before it stops telling them their shares.

**Taking over:** the table says what everybody may hold, and all that it lists count as just seen.
Fencing is the database's: a table is stored only under the lease, and only on top of the version that it was made from.
A write whose end was not seen may still arrive. So until a version of its number is seen in the database, ours or the
one that was thought lost, nothing is released: what the lost one gives was counted before, and stays counted.

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
MISSED_S = 3.0  # without a report: out of sight
PAST_S = KNOWN_S + ROOM_S + EXPIRY_GAPS * LONGEST_GAP_S  # a report as old as this says nothing any more


@dataclass(slots=True)
class _Instance:
    stored: StoredReport
    stored_s: float  # when, on our clock, at the latest
    not_before_s: float  # and at the earliest
    before_s: float = -math.inf  # the earliest of the report before
    asked_s: float = -math.inf  # clients that asked since the last report did so after this
    listed: frozenset[str] = frozenset()

    @property
    def is_out_of_sight_s(self) -> float:
        return self.stored_s + MISSED_S

    def silenced_s(self, client: str) -> float:
        """From when on it cannot tell this client anything, if nothing more is heard of it."""
        if self.stored.report.is_last:
            return self.stored_s
        return self.stored_s + ROOM_S + (KNOWN_S if client in self.listed else FRESH_S)


class ShareLeader:
    """The division of one cap. Mutable; moments must not go backwards."""

    def __init__(self, cap: int, table: ShareTable, now_s: float) -> None:
        self._book = FairShareAllocator(cap, is_deferred=True)
        held = (HeldShare(one.client, one.held, float(one.gap_s), one.share) for one in table.grants)
        self._book.restore(held, now_s)
        self._table = table
        self._grants = {grant.client: grant for grant in table.grants}
        self._instances: dict[str, _Instance] = {}
        self._asked_s: dict[str, float] = {}  # of each client: when it asked last, at the earliest
        self._offered = 0  # version of a table whose writing we have not seen end; 0: none

    @property
    def in_use(self) -> int:
        return self._book.in_use

    def live(self) -> list[tuple[str, Client]]:
        return self._book.live()

    def sync(self, table: ShareTable) -> None:
        """What the database has: ours of before, or the one whose writing we did not see end."""
        if table.version >= self._offered:
            self._offered = 0
        if table.version != self._table.version:
            self._table = table
            self._grants = {grant.client: grant for grant in table.grants}

    def hear(self, reports: Mapping[str, StoredReport], asked_s: float, now_s: float) -> None:
        """All reports that there are, by instance; the database was asked for them between these two moments."""
        self._instances = {name: one for name, one in self._instances.items() if name in reports}
        for name, stored in reports.items():
            known = self._instances.get(name)
            if known is None or known.stored.number != stored.number:
                self._instances[name] = self._heard(known, stored, asked_s, now_s)
            elif known.is_out_of_sight_s <= now_s and not stored.report.is_last:
                for caller in known.stored.report.clients:
                    if now_s < known.silenced_s(caller.client):
                        self._book.look(caller.client, now_s)

    def _heard(self, known: _Instance | None, stored: StoredReport, asked_s: float, now_s: float) -> _Instance:
        """A client that has asked since the report before did so after the one before that was stored.

        That is because an instance makes a report when the one before was stored, or else says that there was trouble.
        """
        listed = frozenset(one.client for one in stored.report.clients)
        instance = _Instance(stored, now_s - stored.age_s, asked_s - stored.age_s, listed=listed)
        if known is not None:
            instance.before_s = known.not_before_s
            if not (stored.is_troubled or known.stored.is_troubled):
                instance.asked_s = known.before_s
        for caller in stored.report.clients:
            if caller.has_polled or (known is None and now_s < instance.silenced_s(caller.client)):
                self._book.poll(caller.client, now_s, caller.in_flight, caller.rejected)
                self._asked_s[caller.client] = max(self._asked_s.get(caller.client, -math.inf), instance.asked_s)
        return instance

    def next(self, cap: int, now_s: float) -> ShareTable | None:
        """The table to be written; None: nothing changed. When it was, `sync` is told."""
        self._book.set_cap(cap, now_s)
        self._book.tend(now_s)
        if not self._offered:
            self._release(now_s)
        self._book.tell_all(now_s)
        version = self._table.version + 1
        grants = []
        for name, client in self._book.all():
            before = self._grants.get(name)
            since = version if before is None or before.share != client.advertised else before.since
            grants.append(Grant(name, client.advertised, client.held, since, math.ceil(client.gap_s)))
        self._asked_s = {grant.client: self._asked_s.get(grant.client, -math.inf) for grant in grants}
        made = ShareTable(version, self._book.clients, self._book.over_cap, tuple(grants))
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
        for name, client in list(self._book.all()):
            granted = self._grants.get(name)
            if client.held == client.advertised or granted is None or granted.share != client.advertised:
                continue  # nothing to release, or the smaller share is not written yet
            if all(self._is_past(one, name, client, granted.since, now_s) for one in self._instances.values()):
                self._book.release(name, max((caller.held for caller in listings.get(name, ())), default=0))

    def _is_past(self, instance: _Instance, name: str, client: Client, since: int, now_s: float) -> bool:
        """Whether no older share that this instance told the client can be in force."""
        if instance.stored.report.version >= since:
            return True
        silenced_s = instance.silenced_s(name)
        expiry_s = max(LEAST_EXPIRY_S, EXPIRY_GAPS * client.gap_s)
        return now_s >= silenced_s + expiry_s or self._asked_s.get(name, -math.inf) >= silenced_s
