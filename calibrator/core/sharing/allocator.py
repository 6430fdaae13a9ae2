"""One cap, many gateways: who may have how much of it in flight.

Stock gateways count per process, so the cap is divided among those that poll. Four numbers belong to each client:

    need    what it said it could use: in flight + refused, the highest of late (halved every `HALF_LIFE_S`);
            at least twice its share if that is full; unknown if it says nothing
    target  its part of the cap by the needs of all:          sum(target) <= cap
    told    what it was last answered, until it is silent too long
    held    what it may really have in flight: told, and what was begun under a larger share and still runs

**The promise: sum(held) <= max(cap, holders), whenever anything is told.** A poll that finds told > target lowers it at
once. One that finds told < target is given no more than what is free, cap - sum(held): so a joiner (told = 0) waits
until the others have heard of their smaller parts, or were silent until they expired. Where there are more clients
than cap nobody can have less than 1, since 0 means "no limit" or "block all" to gateways: then all have 1.

**What still runs** is known of those who say it. A poll with `in_flight` shows that what was told before has arrived,
and how much more is there: held = max(told before, in flight), never more than it was. Whoever says nothing is taken
at his share at once; requests begun under a larger one then come on top until they end. A count that stays high for
`RUN_OUT_S` is believed no longer: it counts what was forgotten, or requests longer than anybody waits for.

The one exception is the world's: when the cap itself falls, those that have not polled since still hold the old share.
Nobody is told more until their sum is below the new cap; each gets its smaller part with its next poll.

| event | targets are worked out again |
|---|---|
| the cap changed | at once |
| a client joined, left or expired | at once, but at most every `GATHER_S`: a fleet that starts joins in a few steps |
| somebody is full or refuses requests | at most every `REBALANCE_S`; with nobody pressed shares stay as they are |

**ShareLeader** is max-min fair: nobody gets more than an equal part while somebody needs more than he has; what an idle
client does not need goes to the others, but for a reserve of `RESERVE_RATIO` of its equal part, so that the first
requests of a burst are not refused while shares move. What nobody needs is divided equally. Without needs, and when
nobody was full or refused anything for `HALF_LIFE_S`, this is cap // n, and one more for the first cap % n by name.

**Expiry:** 3 x the longest gap seen between two polls of that client, at least 10 s. Gaps above `LONGEST_GAP_S` are no
rhythm but an absence. An expired client is remembered so long that a slow rhythm is learned from its second poll on.
Memory is bounded: beyond `MAX_CLIENTS` names the one silent for longest is forgotten, with what it held. A client is a
name: two processes under one name are told one share and use it twice; a name of its own for each poll dilutes all.

Times are the caller's monotonic seconds; clocks of pollers play no part. Cost of a poll: constant, but for a plan
(n log n) in the cases above, and every `LOOK_S` a look at those that were silent for long.

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
LOOK_S = 0.5  # between two looks for the expired
REBALANCE_S = 5.0  # one usual poll interval: shares that move faster than they are heard of would only swing
HALF_LIFE_S = 30.0
RUN_OUT_S = 300.0
RESERVE_RATIO = 0.25
MAX_CLIENTS = 10_000
UNKNOWN = math.inf


def divide(cap: int, needs: Mapping[str, float]) -> dict[str, int]:
    """Targets of all clients: each >= 1, together the cap; or 1 each where that is more."""
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
    takers = sorted(ascending[len(targets) :] or needs)  # by name: equal parts stay where they are
    for index, name in enumerate(takers):
        targets[name] = targets.get(name, 0) + left // len(takers) + (index < left % len(takers))
    return targets


@dataclass(slots=True)
class Client:
    """One poller. `told` 0: it waits, or it has expired."""

    seen_s: float
    gap_s: float = 0.0
    advertised: int = 0
    held: int = 0  # >= told
    over_since_s: float = 0.0  # since when held > told
    reports: bool = False  # what it has in flight
    target: int = 0  # 0: not planned yet
    need: float = UNKNOWN
    noted_s: float = 0.0  # when the need was last worked out
    is_live: bool = True

    @property
    def expires_s(self) -> float:
        return self.seen_s + max(LEAST_EXPIRY_S, EXPIRY_GAPS * self.gap_s)


@dataclass(frozen=True, slots=True)
class HeldShare:
    """What a client may have in flight, as it is remembered over a restart."""

    client: str
    requests: int
    gap_s: float
    advertised: int | None = None  # None: as much; 0: it is gone, and was last told so many


class FairShareAllocator:
    """The division of one cap. Mutable; moments must not go backwards."""

    def __init__(self, cap: int, max_clients: int = MAX_CLIENTS, *, is_deferred: bool = False) -> None:
        """`is_deferred`: what is told here arrives later and elsewhere; `held` falls by `release` alone."""
        self._cap = cap
        self._is_deferred = is_deferred
        self._max_clients = max_clients
        self._clients: dict[str, Client] = {}  # longest silent first
        self._live = 0
        self._holders = 0  # clients with held > 0
        self._held = 0  # their sum
        self._planned_s = self._looked_s = -math.inf
        self._is_changed = False  # since the last plan: who is live
        self._pressed_s = -math.inf  # when somebody could use more than he had
        self.revision = 0  # grows with each change of a target, or of what is told or held

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
        """Clients that the cap has no request left for: all have 1, and so many in all are too much."""
        return max(0, self._live - self._cap)

    def set_cap(self, cap: int, now_s: float) -> None:
        if cap != self._cap:
            self._cap = cap
            self._plan(now_s)

    def poll(self, name: str, now_s: float, in_flight: int | None = None, rejected: int | None = None) -> int | None:
        """What this client may have in flight from now on, >= 1; None: it must wait, for others hold it all."""
        self._expire(now_s)
        client = self._seen(name, now_s)
        client.reports = in_flight is not None
        if not self._is_deferred:
            self._settle(client, now_s, in_flight or 0)
        if client.advertised and not (in_flight is None and rejected is None):
            self._note_need(client, now_s, in_flight or 0, rejected or 0)
        return self._answer(client, now_s)

    def look(self, name: str, now_s: float) -> int | None:
        """A poll that goes on waiting: nothing is heard of the client but that it is there."""
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
            told = min(client.target, client.held + free)
            if told > client.advertised:
                client.advertised = told
                self._hold(client, max(told, client.held))
                self.revision += 1
        return client.advertised or None

    def tend(self, now_s: float) -> None:
        """Let the silent expire where nobody polls; called now and then."""
        self._expire(now_s)
        self._plan_if_due(now_s)

    def held(self) -> tuple[HeldShare, ...]:
        """To be remembered over a restart."""
        return tuple(
            HeldShare(name, client.held, client.gap_s) for name, client in self._clients.items() if client.held > 0
        )

    def live(self) -> list[tuple[str, Client]]:
        """Who counts now, by name."""
        live = ((name, client) for name, client in self._clients.items() if client.is_live)
        return sorted(live, key=lambda one: one[0])

    def restore(self, held: Iterable[HeldShare], now_s: float) -> None:
        """Whoever held a share holds it still. Nobody could poll while we were away: all count as just seen."""
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
        """Who holds something, live or not."""
        return ((name, client) for name, client in self._clients.items() if client.held > 0)

    def tell_all(self, now_s: float) -> None:
        """As if everybody who is live had asked."""
        for client in self._clients.values():
            if client.is_live:
                self._answer(client, now_s)

    def release(self, name: str, most: int) -> None:
        """It has heard what it was told, and has no more than this beyond it."""
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
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
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
        """It has heard what it was told before, and has no more than this beyond it."""
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
            need = max(need, 2.0 * client.advertised)  # full: how much more it could use will show
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
