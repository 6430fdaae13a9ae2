"""Who may probe and publish: what one instance may believe of one lease, and what it does next about it.

A lease is a row in the database, taken and renewed by compare-and-set with the database's clock. An instance that
believes in its lease longer than the database does would probe beside its successor. So it believes for less, and
counts from before it asked:

    database   ·····[carried out ────────────────────── lease_s ──────────────────────) free for others
    we      [asked ──────────── valid_s = 2/3 lease_s ──────────) stop probing ≤ 1 s
            └ our monotonic clock: no step of a wall clock, here or there, moves it

The last third is for ending probes, which takes up to a second (hence `LEAST_LEASE_S`), and for clocks that differ in
pace. With the usual 15 s these are the proportions of Kubernetes' leader election: 15 s lease, 10 s to renew it.

| answer | belief |
|---|---|
| acquired with an epoch | leading until asked + valid_s, under that epoch |
| renewed | the same epoch, until asked + valid_s |
| refused: another holds it | nothing is left |
| none in time, or any exception | as before: it runs out by itself; asked again soon |

A lease that ran out here is still renewed, not acquired: if nobody took it meanwhile the epoch is the same, and what
was decided under it still holds. Acquiring makes a new epoch, so an acquisition whose answer was lost is simply
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
        """A database that accepts and never answers must cost the lead, too; two attempts fit into the validity."""
        return self.lease_s / 5

    @property
    def retry_s(self) -> float:
        return self.lease_s / 15


SOLE = LeasePolicy(is_sole=True)


class Ask(StrEnum):
    """What to ask the database for now."""

    NOTHING = "nothing"
    ACQUIRE = "acquire"
    RENEW = "renew"


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What one instance knows of one lease. Moments are its monotonic clock's."""

    epoch: int = 0  # under which we hold it; 0: it is not ours
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
        """An answer that came late never shortens what a later question gave."""
        return replace(
            self, until_s=max(self.until_s, asked_s + policy.valid_s), due_s=asked_s + policy.renew_every_s
        )  # fmt: skip

    def refused(self, now_s: float, policy: LeasePolicy) -> LeaseState:
        return LeaseState(due_s=now_s + policy.retry_s)

    def failed(self, now_s: float, policy: LeasePolicy) -> LeaseState:
        return replace(self, due_s=now_s + policy.retry_s)

    def due_now(self) -> LeaseState:
        """Something happened in the database: who has no lease looks again now."""
        return self if self.epoch else replace(self, due_s=-math.inf)


def is_settled_by(stored: Recommendation, lowered: Recommendation) -> bool:
    """Whether what the holder stored makes a lowering void that another instance served but could not store.

    It is not higher, or it was measured after the lowering. A new version alone is no evidence: it may be the same
    measurement for another number of replicas.
    """
    return stored.cap <= lowered.cap or (stored.measured_at or 0.0) > lowered.published_at
