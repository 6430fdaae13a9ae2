"""What went wrong with a sweep's requests, in the servers' own words: for its end, its warnings, and the reader."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from calibrator.core.records.sample import FailureKind, Sample
from calibrator.errors import QUOTA_REMEDY, ConfigurationError, UnreachableError
from calibrator.ports.backend import BackendFacts
from calibrator.ports.sweeps import SweepOrder

TOLD_RATIO = 0.01  # of the ended requests; fewer are the business of the levels
_IDENTIFIER = re.compile(r"calibrator-[\w-]+|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")  # ours, or a UUID
MAX_WORDS = 1000  # kinds of words that are counted apart; some servers name the request in each


@dataclass(slots=True)
class FailureTally:
    """Failures of a whole sweep."""

    ended: int = 0
    completed: int = 0
    words: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def add(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self.ended += 1
            self.completed += sample.completed
            if sample.failure is None:
                continue
            self.failed += 1
            said = f"{sample.failure.kind}: {_IDENTIFIER.sub('...', sample.failure.detail)}"
            if said in self.words or len(self.words) < MAX_WORDS:
                self.words[said] += 1

    @property
    def commonest(self) -> tuple[str, int]:
        return next(iter(self.words.most_common(1)), ("", 0))

    @property
    def nothing_worked(self) -> str:
        """Why not one request succeeded; empty if one did, or none was sent."""
        said, count = self.commonest
        return "" if self.completed or not count else f"every request failed, {count} of them with: {said}"

    @property
    def warnings(self) -> tuple[str, ...]:
        said, count = self.commonest
        if self.failed <= TOLD_RATIO * self.ended:
            return ()
        return (f"{self.failed} of {self.ended} requests failed, {count} of them with: {said}",)


def quota_error(samples: Sequence[Sample], level: int) -> UnreachableError | None:
    """A quota per time is no capacity: what is measured behind it is the quota."""
    for sample in samples:
        if sample.failure is not None and sample.failure.kind is FailureKind.QUOTA:
            return UnreachableError(
                f"Requests are refused by a quota, first at concurrency {level}: {sample.failure.detail}.", QUOTA_REMEDY
            )
    return None


def refuse_unmeasurable(order: SweepOrder, facts: BackendFacts) -> None:
    """Raises ConfigurationError if an objective of the sweep cannot be measured at this server."""
    for objective in order.objectives:
        for one in facts.unmeasurable:
            if one.metric is objective.metric:
                raise ConfigurationError(
                    f"'{objective}' cannot be measured here ({one.reason.value}): {one.cause}", one.remedy
                )
