"""One cap, several calibrators: what one instance answers its pollers, from the table that the leading one writes.

    every second, each instance:    1. write the report: who polled here, and what he was told
                                    2. read the newest table                         together: an exchange
    the leader, besides:            3. hear all reports, divide, write the next table     (core.sharing.leader)

The database is the only way between instances. Whoever is in the table is told his share by any instance; a new name
waits (503) until the leader has given it one. Versions of the table grow by one with each change.

**Alone.** An instance that cannot exchange goes on for a while, and the leader knows for how long:

| since its last exchange began | told to a client of its last report | told to others |
|---|---|---|
| below `FRESH_S` | its share in the table | their share in the table |
| below `KNOWN_S` | the lesser of that and what it was last told here | nothing: they wait |
| after that | nothing: gateways keep what they have | nothing |

So with the database lost known shares go on and nobody joins. The leader takes no share away that an instance out of
sight may still be telling.

Times are monotonic seconds of this machine, counted from before the exchange began: whatever delays it shortens them.

Called by `service.publishing.joint_shares`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from calibrator.core.sharing.allocator import EXPIRY_GAPS, LEAST_EXPIRY_S, LONGEST_GAP_S, MAX_CLIENTS, RUN_OUT_S

FRESH_S = 10.0
KNOWN_S = 600.0


@dataclass(frozen=True, slots=True)
class Grant:
    """What the table says of one client."""

    client: str
    share: int  # 0: it is gone, and may still have what it holds
    held: int  # what it may really have; >= share
    since: int  # version of the table since which it has this share
    gap_s: int = 0  # its rhythm, rounded up


@dataclass(frozen=True, slots=True)
class ShareTable:
    """The division of one cap, as all instances read it."""

    version: int = 0
    clients: int = 0  # live ones, those that wait included
    over_cap: int = 0
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientReport:
    """One poller of one instance."""

    client: str
    advertised: int  # when it last polled; 0: it waits
    held: int  # what it may have, by what it says and was told here
    has_polled: bool  # since the last report
    in_flight: int | None = None
    rejected: int | None = None  # since the last report


@dataclass(frozen=True, slots=True)
class CacheReport:
    version: int  # of the newest table that this instance has read
    clients: tuple[ClientReport, ...] = ()
    is_last: bool = False  # it tells nobody anything from here on


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report as it stands in the database."""

    number: int  # of this instance's reports; a lower one never replaces it
    age_s: float  # by the database's clock
    report: CacheReport
    is_troubled: bool = False  # one before it may have been stored or not


@dataclass(frozen=True, slots=True)
class CapReport:
    """Whose cap a report is about."""

    backend: str
    per_replica: bool
    report: CacheReport


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """All that one instance has to say."""

    number: int
    caps: tuple[CapReport, ...]
    is_troubled: bool = False


@dataclass(slots=True)
class _Caller:
    seen_s: float
    gap_s: float = 0.0
    advertised: int = 0
    held: int = 0
    over_since_s: float = 0.0
    has_polled: bool = True
    in_flight: int | None = None
    rejected: int = 0


@dataclass(slots=True)
class ShareCache:
    """The pollers of one cap at one instance."""

    max_clients: int = MAX_CLIENTS
    table: ShareTable = ShareTable()
    _shares: Mapping[str, int] = field(default_factory=dict)
    _callers: dict[str, _Caller] = field(default_factory=dict)  # longest silent first
    _reported: frozenset[str] = frozenset()
    _exchanged_s: float = -math.inf
    _is_closed: bool = False

    def poll(self, client: str, now_s: float, in_flight: int | None = None, rejected: int | None = None) -> int | None:
        """What it may have in flight from now on; None: it waits, and keeps what it has."""
        caller = self._seen(client, now_s)
        caller.in_flight = in_flight
        caller.rejected += rejected or 0
        running = in_flight or 0
        if running <= caller.advertised:
            caller.over_since_s = now_s
        caller.held = max(caller.advertised, running if now_s - caller.over_since_s < RUN_OUT_S else 0)
        return self._answer(client, caller, now_s)

    def look(self, client: str, now_s: float) -> int | None:
        """A poll that goes on waiting."""
        return self._answer(client, self._seen(client, now_s), now_s)

    def _seen(self, client: str, now_s: float) -> _Caller:
        caller = self._callers.pop(client, None)
        if caller is None:
            caller = _Caller(now_s, over_since_s=now_s)
        gap_s = now_s - caller.seen_s
        if gap_s <= LONGEST_GAP_S:
            caller.gap_s = max(caller.gap_s, gap_s)
        caller.seen_s, caller.has_polled = now_s, True
        self._callers[client] = caller
        if len(self._callers) > self.max_clients:
            del self._callers[next(iter(self._callers))]
        return caller

    def _answer(self, client: str, caller: _Caller, now_s: float) -> int | None:
        share = 0 if self._is_closed else self._shares.get(client, 0)
        silent_s = now_s - self._exchanged_s
        if silent_s >= FRESH_S:
            share = min(share, caller.advertised) if silent_s < KNOWN_S and client in self._reported else 0
        if not share:
            return None
        falls_at_once = caller.in_flight is None
        caller.advertised, caller.held = share, share if falls_at_once else max(caller.held, share)
        return share

    def callers(self, now_s: float) -> list[tuple[str, int, int, float, float]]:
        """Who polls here, by name: told, its share in the table, seconds since its last poll, longest gap."""
        return sorted(
            (client, caller.advertised, self._shares.get(client, 0), now_s - caller.seen_s, caller.gap_s)
            for client, caller in self._callers.items()
        )

    def close(self) -> None:
        """Tell nobody anything; the next report is the last."""
        self._is_closed = True

    # ------------------------------------------------------------------------------------------------ exchanges
    def report(self, now_s: float) -> CacheReport:
        """What the leader is to hear.

        Whoever is silent is listed for twice as long as he counts: he may have come here last before he asked another
        instance, and may still go by what he was told here when he asked there.
        """
        for client, caller in list(self._callers.items()):
            if now_s - caller.seen_s >= 2.0 * max(LEAST_EXPIRY_S, EXPIRY_GAPS * caller.gap_s):
                del self._callers[client]
        clients = (
            ClientReport(
                client, caller.advertised, caller.held, caller.has_polled, caller.in_flight,
                caller.rejected or None,
            )
            for client, caller in self._callers.items()
        )  # fmt: skip
        return CacheReport(self.table.version, tuple(clients), self._is_closed)

    def exchanged(self, told: CacheReport, table: ShareTable, begun_s: float) -> None:
        """The report was written, and then the table read."""
        for one in told.clients:
            caller = self._callers.get(one.client)
            if caller is not None:
                caller.has_polled = caller.has_polled and caller.seen_s >= begun_s
                caller.rejected -= one.rejected or 0
        self._reported, self._exchanged_s = frozenset(one.client for one in told.clients), begun_s
        self.adopt(table)

    def adopt(self, table: ShareTable) -> None:
        if table.version != self.table.version:
            self.table = table
            self._shares = {grant.client: grant.share for grant in table.grants}
