"""One cap, many gateways: how many requests each of them may have in flight.

Stock gateways limit concurrency per process, so the cap is divided among those that poll. Four numbers per client:

    need        what it reported it could use: in flight + rejected, the recent maximum (halved every `HALF_LIFE_S`);
                at least twice its share while that is full; unknown if it reports nothing
    target      its part of the cap, given everyone's needs:       sum(target) <= cap
    advertised  the share it was last given, until the client expires
    held        what it may actually have in flight: advertised, plus requests started under a larger share that are
                still running

**Invariant: sum(held) <= max(cap, holders), after every answer.** A poll that finds advertised > target lowers it at
once. One that finds advertised < target gets at most what is free, cap - sum(held). So a new client (advertised = 0)
waits until the others have picked up their smaller shares, or have expired. With more clients than cap, shares cannot
go below 1, because gateways read 0 as "no limit" or "block all": then every client has 1.

**Requests still running** are known only for clients that report them. A poll with `in_flight` shows that the previous
share has arrived, and how much is running beyond it: held = max(previous share, in flight), never rising. A client that
reports nothing is assumed to hold its share from now on; requests started under a larger one then exceed the cap until
they end. A count that stays high for `RUN_OUT_S` is no longer believed: it is a leaked counter, or requests longer than
any client waits for.

One exception is unavoidable: when the cap itself falls, clients that have not polled since still hold their old share.
No share is raised until the sum is below the new cap, and each client gets its smaller share with its next poll.

| event | targets are recomputed |
|---|---|
| the cap changed | at once |
| a client joined, left or expired | at once, but at most every `GATHER_S`: a starting fleet joins in a few steps |
| a client is full or rejects requests | at most every `REBALANCE_S`; shares stay put while no client is pressed |

**The division** is max-min fair: no client gets more than an equal part while another needs more than it has. What
idle clients do not need goes to the others, except for a reserve of `RESERVE_RATIO` of an equal part, so that the first
requests of a burst are not rejected while shares move. Unneeded capacity is divided equally. Without reported needs,
and after `HALF_LIFE_S` without pressure, each client gets cap // n, and the first cap % n by name one more.

**Expiry:** after 3 x the longest gap between two polls of that client, at least 10 s. Gaps above `LONGEST_GAP_S` count
as an absence, not as a polling interval. An expired client is kept long enough to learn a slow interval from its second
poll. Memory is bounded: beyond `MAX_CLIENTS` names the one silent for longest is dropped, along with what it held. A
client is a name: two processes with the same name are given one share and use it twice, and a client that polls under
a new name each time dilutes everyone's share.

Times are the caller's monotonic seconds; pollers' clocks do not matter. A poll costs constant time, except for the
recomputations above (n log n) and a check every `EXPIRY_CHECK_S` for clients that have been silent for long.

Called by `service.publishing.shares`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LEAST_EXPIRY_S = 10.0
EXPIRY_GAPS = 3.0
LONGEST_GAP_S = 120.0  # twice the longest long poll
GATHER_S = 0.1
EXPIRY_CHECK_S = 0.5  # between two checks for expired clients
REBALANCE_S = 5.0  # a typical poll interval: shares that change faster than clients poll would oscillate
HALF_LIFE_S = 30.0
RUN_OUT_S = 300.0
RESERVE_RATIO = 0.25
MAX_CLIENTS = 10_000
UNKNOWN = math.inf


def divide(cap: int, needs: Mapping[str, float]) -> dict[str, int]:
    """Targets of all clients: each >= 1, and their sum is the cap, or 1 each with more clients than cap."""
    count = len(needs)
    if count == 0 or count >= cap:
        return dict.fromkeys(needs, 1)
    reserve = max(1, math.floor(RESERVE_RATIO * cap / count))
    left, targets = cap, dict[str, int]()
    ascending = sorted(needs, key=lambda name: needs[name])
    for name in ascending:
        wanted = max(reserve, needs[name])
        if wanted >= -(-left // (count - len(targets))):
            break
        targets[name] = math.ceil(wanted)
        left -= targets[name]
    takers = sorted(ascending[len(targets) :] or needs)  # by name, so that equal parts do not move around
    for index, name in enumerate(takers):
        targets[name] = targets.get(name, 0) + left // len(takers) + (index < left % len(takers))
    return targets


@dataclass(slots=True)
class Client:
    """One poller. `advertised` 0: it is waiting, or has expired."""

    seen_s: float
    gap_s: float = 0.0
    advertised: int = 0
    held: int = 0  # >= advertised
    over_since_s: float = 0.0  # since when held > advertised
    reports: bool = False  # what it has in flight
    target: int = 0  # 0: not planned yet
    need: float = UNKNOWN
    noted_s: float = 0.0  # when the need was last updated
    is_live: bool = True

    @property
    def expires_s(self) -> float:
        return self.seen_s + max(LEAST_EXPIRY_S, EXPIRY_GAPS * self.gap_s)


@dataclass(frozen=True, slots=True)
class HeldShare:
    """What a client may have in flight, as stored across restarts."""

    client: str
    requests: int
    gap_s: float
    advertised: int | None = None  # None: the same as `requests`; 0: the client has left, and this was its last share


class FairShareAllocator:
    """Divides one cap. Mutable; times must not go backwards."""

    def __init__(self, cap: int, max_clients: int = MAX_CLIENTS, *, is_deferred: bool = False) -> None:
        """`is_deferred`: answers reach clients later, through other instances; `held` is lowered by `release` alone."""
        self._cap = cap
        self._is_deferred = is_deferred
        self._max_clients = max_clients
        self._clients: dict[str, Client] = {}  # longest silent first
        self._live = 0
        self._holders = 0  # clients with held > 0
        self._held = 0  # their sum
        self._planned_s = self._expiry_checked_s = -math.inf
        self._is_changed = False  # the set of live clients, since the last plan
        self._pressed_s = -math.inf  # when a client last could have used more than its share
        self.revision = 0  # grows with each change of a target, an advertised share or what is held

    @property
    def clients(self) -> int:
        return self._live

    @property
    def cap(self) -> int:
        return self._cap

    @property
    def in_use(self) -> int:
        """What all clients together may have in flight."""
        return self._held

    @property
    def over_cap(self) -> int:
        """By how many clients the cap is exceeded when each of them has 1."""
        return max(0, self._live - self._cap)

    def set_cap(self, cap: int, now_s: float) -> None:
        if cap != self._cap:
            self._cap = cap
            self._plan(now_s)

    def poll(self, name: str, now_s: float, in_flight: int | None = None, rejected: int | None = None) -> int | None:
        """What this client may have in flight from now on, >= 1; None: it must wait, others hold the whole cap."""
        self._expire(now_s)
        client = self._seen(name, now_s)
        client.reports = in_flight is not None
        if not self._is_deferred:
            self._settle(client, now_s, in_flight or 0)
        if client.advertised and not (in_flight is None and rejected is None):
            self._note_need(client, now_s, in_flight or 0, rejected or 0)
        return self._answer(client, now_s)

    def wait_on(self, name: str, now_s: float) -> int | None:
        """A long poll that is still waiting: it shows that the client is there, and nothing else."""
        self._expire(now_s)
        return self._answer(self._seen(name, now_s), now_s)

    def _answer(self, client: Client, now_s: float) -> int | None:
        self._plan_if_due(now_s)
        if client.target < client.advertised:
            if client.held == client.advertised:
                client.over_since_s = now_s
            client.advertised = max(1, client.target)
            self.revision += 1
            if not (client.reports or self._is_deferred):
                self._hold(client, client.advertised)
        elif client.target > client.advertised:
            holders = self._holders + (client.held == 0)
            free = max(0, max(self._cap, holders) - self._held)
            share = min(client.target, client.held + free)
            if share > client.advertised:
                client.advertised = share
                self._hold(client, max(share, client.held))
                self.revision += 1
        return client.advertised or None

    def tend(self, now_s: float) -> None:
        """Expire silent clients even when there are no polls; called periodically."""
        self._expire(now_s)
        self._plan_if_due(now_s)

    def held(self) -> tuple[HeldShare, ...]:
        """To be stored across restarts."""
        return tuple(
            HeldShare(name, client.held, client.gap_s) for name, client in self._clients.items() if client.held > 0
        )

    def live(self) -> list[tuple[str, Client]]:
        """Live clients, by name."""
        live = ((name, client) for name, client in self._clients.items() if client.is_live)
        return sorted(live, key=lambda one: one[0])

    def restore(self, held: Iterable[HeldShare], now_s: float) -> None:
        """Clients that held a share still hold it. None could poll while we were down, so all count as just seen."""
        for share in held:
            if share.client not in self._clients and len(self._clients) < self._max_clients and share.requests > 0:
                client = self._clients[share.client] = Client(now_s, min(share.gap_s, LONGEST_GAP_S))
                client.advertised = share.requests if share.advertised is None else share.advertised
                client.is_live = client.advertised > 0
                self._live += client.is_live
                self._hold(client, share.requests)
        self._plan(now_s)

    # ------------------------------------------------------------------------- where several calibrators share the cap
    def all(self) -> Iterable[tuple[str, Client]]:
        """Clients that hold something, live or not."""
        return ((name, client) for name, client in self._clients.items() if client.held > 0)

    def tell_all(self, now_s: float) -> None:
        """As if every live client had polled."""
        for client in self._clients.values():
            if client.is_live:
                self._answer(client, now_s)

    def release(self, name: str, most: int) -> None:
        """The client has picked up its current share, and at most `most` of its requests are still running."""
        client = self._clients[name]
        self._hold(client, max(client.advertised, min(client.held, most)))

    # ------------------------------------------------------------------------------------------------- clients
    def _seen(self, name: str, now_s: float) -> Client:
        client = self._clients.pop(name, None)
        if client is None:
            client = Client(now_s)
            self._join(client)
        else:
            gap_s = now_s - client.seen_s
            if gap_s <= LONGEST_GAP_S:
                client.gap_s = max(client.gap_s, gap_s)
            elif not client.is_live:
                client.gap_s = 0.0
            client.seen_s = now_s
            if not client.is_live:
                client.is_live = True
                self._join(client)
        self._clients[name] = client  # at the end: longest silent first
        if len(self._clients) > self._max_clients:
            forgotten = self._clients.pop(next(iter(self._clients)))
            self._leave(forgotten)
            self._hold(forgotten, 0)
        return client

    def _expire(self, now_s: float) -> None:
        if now_s - self._expiry_checked_s < EXPIRY_CHECK_S:
            return
        self._expiry_checked_s = now_s
        forgotten = []
        for name, client in self._clients.items():
            silent_s = now_s - client.seen_s
            if silent_s < LEAST_EXPIRY_S:
                break  # and all after it
            if client.is_live and now_s >= client.expires_s:
                self._leave(client)
            if not client.is_live and not client.held and silent_s > LONGEST_GAP_S:
                forgotten.append(name)
        for name in forgotten:
            del self._clients[name]

    def _join(self, client: Client) -> None:
        client.target, client.need = 0, UNKNOWN
        self._live += 1
        self._is_changed = True

    def _leave(self, client: Client) -> None:
        if client.is_live:
            client.is_live = False
            self._live -= 1
            self._is_changed = True
            client.advertised = 0
            self.revision += 1
            if not self._is_deferred:
                self._hold(client, 0)

    def _settle(self, client: Client, now_s: float, in_flight: int) -> None:
        """A poll shows that the previous share has arrived, and how much is still running beyond it."""
        if client.held == client.advertised:
            return
        is_believed = now_s - client.over_since_s < RUN_OUT_S
        self._hold(client, max(client.advertised, min(client.held, in_flight if is_believed else 0)))

    def _hold(self, client: Client, held: int) -> None:
        if held != client.held:
            self._held += held - client.held
            self._holders += (held > 0) - (client.held > 0)
            client.held = held
            self.revision += 1

    # ---------------------------------------------------------------------------------------------------- plan
    def _note_need(self, client: Client, now_s: float, in_flight: int, rejected: int) -> None:
        need = float(in_flight + rejected)
        if rejected or in_flight >= client.advertised:
            self._pressed_s = now_s
            need = max(need, 2.0 * client.advertised)  # full: how much more it could use remains to be seen
        if not math.isinf(client.need):
            need = max(need, client.need * 0.5 ** ((now_s - client.noted_s) / HALF_LIFE_S))
        client.need, client.noted_s = min(need, self._cap), now_s

    def _plan_if_due(self, now_s: float) -> None:
        age_s = now_s - self._planned_s
        is_pressed = self._pressed_s > self._planned_s
        if (self._is_changed and age_s >= GATHER_S) or (is_pressed and age_s >= REBALANCE_S):
            self._plan(now_s)

    def _plan(self, now_s: float) -> None:
        live = {name: client for name, client in self._clients.items() if client.is_live}
        by_need = now_s - self._pressed_s < HALF_LIFE_S
        targets = divide(self._cap, {name: client.need if by_need else UNKNOWN for name, client in live.items()})
        for name, client in live.items():
            self.revision += client.target != targets[name]
            client.target = targets[name]
        self._planned_s, self._is_changed = now_s, False
