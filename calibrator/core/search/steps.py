"""What a search may answer: measure a level, or conclude. Used by the policy, the sweep and the simulation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from calibrator.core.records.history import Capacity
from calibrator.core.records.sweep import EndReason, Grade, SweepOutcome


class Test(StrEnum):
    """When a stage may end early. `fixed` never does: it takes exactly `max_samples`."""

    __test__ = False  # not a pytest class

    SCREEN = "screen"  # cheap: is this level grossly overloaded?
    VERDICT = "verdict"  # full: SPRT between the ends of the indifference zone
    SENTINEL = "sentinel"  # in between: does a level that held before still hold?
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure `level` until `test` is settled or `max_samples` are decided; without a warm-up if already there."""

    level: int
    test: Test
    max_samples: int  # decided samples of this stage, per objective
    reason: str  # in words, for progress and records


@dataclass(frozen=True, slots=True)
class Ending:
    """Why something ends, as a code and in words."""

    code: EndReason
    words: str


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The end of a sweep."""

    outcome: SweepOutcome
    grade: Grade | None
    capacity: Capacity | None
    why: Ending

    @property
    def reason(self) -> str:
        return self.why.words


Step = Measure | Conclusion
