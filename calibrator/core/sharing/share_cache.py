"""One cap, several calibrators: how an instance answers its pollers, from the table that the leader writes.

    every second, each instance:    1. write its report: who polled here, and which share was advertised
                                    2. read the newest table                         together: an exchange
    the leader, in addition:        3. read all reports, divide, write the next table     (core.sharing.leader)

Instances communicate only through the database. Any instance can answer a client that is in the table; a new name waits
(503) until the leader has granted it a share. The table's version grows by one with each change.

**Without the database** an instance goes on for a limited time, which the leader knows:

| since its last exchange began | clients in its last report get | other clients get |
|---|---|---|
| below `FRESH_S` | their share in the table | their share in the table |
| below `KNOWN_S` | the smaller of that and what was last advertised here | nothing: they wait |
| after that | nothing: gateways keep what they have | nothing |

So if the database is lost, known shares stay in use and no client can join. The leader does not reassign a share that
an unreachable instance may still be advertising.

Times are monotonic seconds of this machine, counted from before the exchange began, so delays only shorten them.

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
    """One client's entry in the table."""

    client: str
    share: int  # 0: the client has left, and may still have what it holds
    held: int  # what it may actually have in flight; >= share
    since: int  # version of the table that gave it this share
    gap_s: int = 0  # its polling interval, rounded up


@dataclass(frozen=True, slots=True)
class ShareTable:
    """The division of one cap, as all instances read it."""

    version: int = 0
    clients: int = 0  # live, including those that wait
    over_cap: int = 0
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientReport:
    """One poller of one instance."""

    client: str
    advertised: int  # at its last poll; 0: it waits
    held: int  # what it may have in flight, given what it reported and what was advertised here
    has_polled: bool  # since the last report
    in_flight: int | None = None
    rejected: int | None = None  # since the last report


@dataclass(frozen=True, slots=True)
class CacheReport:
    version: int  # of the newest table that this instance has read
    clients: tuple[ClientReport, ...] = ()
    is_last: bool = False  # this instance answers no more polls


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report as stored in the database."""

    number: int  # of this instance's reports; a lower one never replaces it
    age_s: float  # by the database's clock
    report: CacheReport
    is_troubled: bool = False  # whether the report before it was stored is not known


@dataclass(frozen=True, slots=True)
class CapReport:
    """A report, and the cap it is about."""

    backend: str
    per_replica: bool
    report: CacheReport


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """Everything that one instance reports."""

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
        """What the client may have in flight from now on; None: it waits, and keeps what it has."""
        caller = self._seen(client, now_s)
        caller.in_flight = in_flight
        caller.rejected += rejected or 0
        running = in_flight or 0
        if running <= caller.advertised:
            caller.over_since_s = now_s
        caller.held = max(caller.advertised, running if now_s - caller.over_since_s < RUN_OUT_S else 0)
        return self._answer(client, caller, now_s)

    def wait_on(self, client: str, now_s: float) -> int | None:
        """A long poll that is still waiting."""
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
        """Clients that poll here, by name: advertised, share in the table, seconds since the last poll, longest gap."""
        return sorted(
            (client, caller.advertised, self._shares.get(client, 0), now_s - caller.seen_s, caller.gap_s)
            for client, caller in self._callers.items()
        )

    def close(self) -> None:
        """Answer no more polls; the next report is the last."""
        self._is_closed = True

    # ------------------------------------------------------------------------------------------------ exchanges
    def report(self, now_s: float) -> CacheReport:
        """What the leader needs to know.

        A silent client stays listed for twice its expiry: it may have polled another instance since, and may have done
        so while it still applied the share it got here.
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

    def exchanged(self, written: CacheReport, table: ShareTable, begun_s: float) -> None:
        """The report was written, and the table read after it."""
        for one in written.clients:
            caller = self._callers.get(one.client)
            if caller is not None:
                caller.has_polled = caller.has_polled and caller.seen_s >= begun_s
                caller.rejected -= one.rejected or 0
        self._reported, self._exchanged_s = frozenset(one.client for one in written.clients), begun_s
        self.adopt(table)

    def adopt(self, table: ShareTable) -> None:
        if table.version != self.table.version:
            self.table = table
            self._shares = {grant.client: grant.share for grant in table.grants}
