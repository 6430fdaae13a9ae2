"""What gateways ask, and the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Poll(NamedTuple):
    """One gateway process asks for its part of a cap. A tuple, as thousands are made a second."""

    client: str  # its identity: `client=`, Envoy's node id, HAProxy's agent-send; "" gets the whole cap, unshared
    in_flight: int | None = None  # what it has under way; None: it does not say
    rejected: int | None = None  # turned away by it since its last poll
    per_replica: bool = False  # for gateways that limit each server: divides `replica_cap` instead of `cap`
    is_waiting: bool = False  # a long poll that re-checks: not counted as another poll


class Share(NamedTuple):
    """The part of one client; over all clients of a backend the sum never exceeds the cap (or each client has 1)."""

    requests: int | None  # >= 1; None: a joiner waits until the others' smaller shares were delivered or expired
    clients: int
    version: int  # changes with every change of this client's answer, also over restarts; not ordered
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Poller:
    """One live client of a cap."""

    client: str
    per_replica: bool  # divides the replica's cap
    share: int  # last advertised to it; 0: it waits
    target: int  # what it gets as soon as the others know theirs
    seen_age_s: float  # since its last poll
    gap_s: float  # longest time between two of its polls
