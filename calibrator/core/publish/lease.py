"""Who may probe and publish: how long an instance may rely on a lease, and what it does next about it.

A lease is a row in the database, taken and renewed by compare-and-set with the database's clock. An instance that
relied on its lease for longer than the database grants it would probe at the same time as its successor. So it relies
on it for less, and counts from before the request:

    database   ·····[executed ───────────────────────── lease_s ──────────────────────) free for others
    we      [asked ──────────── valid_s = 2/3 lease_s ──────────) stop probing ≤ 1 s
            └ our monotonic clock, unaffected by steps of wall clocks here or there

The last third is for ending probes, which takes up to a second (hence `LEAST_LEASE_S`), and for clocks that run at
different speeds. At the default of 15 s these are the proportions of Kubernetes leader election: a lease of 15 s, 10 s
to renew it.

| answer | effect |
|---|---|
| acquired with an epoch | held until asked + valid_s, under that epoch |
| renewed | the same epoch, until asked + valid_s |
| refused: another instance holds it | lost at once |
| none in time, or an exception | unchanged: it expires by itself; asked again soon |

A lease that expired here is still renewed rather than acquired: if no other instance took it, the epoch is the same,
and decisions under it still hold. Acquiring makes a new epoch, so an acquisition whose answer was lost is simply
repeated.

`SOLE` is for databases that admit one instance at a time (SQLite, by a file lock): taken once, kept until released.

Called by `service.publishing.leases`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from calibrator.core.publish.snapshot import Recommendation

LEAST_LEASE_S = 3.0  # a third of it ends probes, which may take a second


@dataclass(frozen=True, slots=True)
class LeasePolicy:
    """Times of a lease; all follow from its length."""

    lease_s: float = 15.0
    is_sole: bool = False  # the database admits no other instance

    @property
    def valid_s(self) -> float:
        return math.inf if self.is_sole else self.lease_s * 2 / 3

    @property
    def renew_every_s(self) -> float:
        return math.inf if self.is_sole else self.lease_s / 3

    @property
    def answer_limit_s(self) -> float:
        """A database that never answers must cost the lease, too; two attempts fit into the validity."""
        return self.lease_s / 5

    @property
    def retry_s(self) -> float:
        return self.lease_s / 15


SOLE = LeasePolicy(is_sole=True)


class Ask(StrEnum):
    """What to request from the database now."""

    NOTHING = "nothing"
    ACQUIRE = "acquire"
    RENEW = "renew"


@dataclass(frozen=True, slots=True)
class LeaseState:
    """One instance's state of one lease. Times are on its monotonic clock."""

    epoch: int = 0  # under which this instance holds it; 0: it does not
    until_s: float = -math.inf
    due_s: float = -math.inf  # when to ask again

    def is_leading(self, now_s: float) -> bool:
        return self.epoch > 0 and now_s < self.until_s

    def ask(self, now_s: float) -> Ask:
        if now_s < self.due_s:
            return Ask.NOTHING
        return Ask.RENEW if self.epoch else Ask.ACQUIRE

    def acquired(self, epoch: int, asked_s: float, policy: LeasePolicy) -> LeaseState:
        return LeaseState(epoch, asked_s + policy.valid_s, asked_s + policy.renew_every_s)

    def renewed(self, asked_s: float, policy: LeasePolicy) -> LeaseState:
        """A late answer never shortens what a later request obtained."""
        return replace(
            self, until_s=max(self.until_s, asked_s + policy.valid_s), due_s=asked_s + policy.renew_every_s
        )  # fmt: skip

    def refused(self, now_s: float, policy: LeasePolicy) -> LeaseState:
        return LeaseState(due_s=now_s + policy.retry_s)

    def failed(self, now_s: float, policy: LeasePolicy) -> LeaseState:
        return replace(self, due_s=now_s + policy.retry_s)

    def due_now(self) -> LeaseState:
        """After a change in the database: an instance without the lease asks again now."""
        return self if self.epoch else replace(self, due_s=-math.inf)


def is_settled_by(stored: Recommendation, lowered: Recommendation) -> bool:
    """Whether what the holder stored supersedes a lowering that another instance served but could not store.

    It does if it is not higher, or was measured after the lowering. A new version alone is not enough: it may be the
    same measurement for another number of replicas.
    """
    return stored.cap <= lowered.cap or (stored.measured_at or 0.0) > lowered.published_at
