"""What was measured, as values that can be stored, replayed and judged again.

A sweep is a list of **stages**: uninterrupted stays at one level. A stage holds, per objective of the SLA, the decided
violation bits in start order up to the first undecided request (`Evidence`). Verdict, search and curve are functions of
these values alone, so a stored sweep can be replayed against a new policy, and a broken one resumed.

`at` times are seconds on the sweep's own clock (0 = its start). A level is a total in-flight count on one replica.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from calibrator.core.records.objective import Objective
from calibrator.core.records.server_load import ServerLoadPeak
from calibrator.core.records.unmeasured import Counts, is_given_up, is_unmeasured
from calibrator.core.stats.autocorrelation import CorrelationTime
from calibrator.errors import ConfigurationError

HISTORY_VERSION = 2  # 1: stages were called visits


@dataclass(frozen=True, slots=True)
class Evidence:
    """Bits of one objective in one stage.

    bits: '0' passed, '1' violated, in start order, ending before the first undecided request.
    violation_at_s: one time per '1', same order: its first token, failure, or the moment the limit passed.
    missing: requests in the same span of the start order that have no bit, by what they lack (`records.unmeasured`).
    """

    bits: str = ""
    violation_at_s: tuple[float, ...] = ()
    missing: Counts = ()

    @property
    def n(self) -> int:
        return len(self.bits)

    @property
    def exceedances(self) -> int:
        return len(self.violation_at_s)

    @property
    def is_unmeasured(self) -> bool:
        """Too little was seen for the level to be met."""
        return is_unmeasured(self.n, self.missing)

    @property
    def is_given_up(self) -> bool:
        """Likewise, and there is no point in asking on."""
        return is_given_up(self.n, self.missing)


@dataclass(frozen=True, slots=True)
class RampCount:
    """Decided requests of a ramp, started after its last user was added: they may fail a level, never pass it."""

    n: int = 0
    exceedances: int = 0


@dataclass(frozen=True, slots=True)
class Audit:
    """The generator's own error during a stage; `reasons` not empty = the stage must not be judged."""

    loop_lag_p99_s: float = 0.0
    send_delay_p99_s: float = 0.0
    cpu_ratio: float = 0.0  # of one core, busiest process
    wanted_concurrency: float = 0.0
    achieved_concurrency: float = 0.0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One uninterrupted stay at a level."""

    level: int
    started_at_s: float
    ended_at_s: float
    residence_s: float  # median time that a request of this stage stayed; 0.0 if none ended
    evidence: tuple[Evidence, ...]  # one per objective, in the SLA's order
    ramp: tuple[RampCount, ...]  # likewise
    ramp_failed: bool = False
    requests: int = 0  # all sent, warm-up and followers included
    tail_ratio: tuple[float | None, ...] = ()  # per objective: cheap upper quantile / limit, aims the ramp's next step
    correlation: tuple[CorrelationTime | None, ...] = ()  # per objective: how long slow spells last at this level
    audit: Audit = field(default_factory=Audit)
    server: ServerLoadPeak = field(default_factory=ServerLoadPeak)
    organic: float | None = None  # mean in flight beside ours; None: could not be seen
    level_lost: str = ""  # live traffic made another level of it: why, in words
    number: int = 0  # of the labels that its requests carry; stages in a row at one level may share it

    @property
    def invalid_reasons(self) -> tuple[str, ...]:
        """Why it must not be judged; empty if it may."""
        return (*self.audit.reasons, self.level_lost) if self.level_lost else self.audit.reasons

    @property
    def is_given_up(self) -> bool:
        """Of one objective too little can be seen here."""
        return any(part.is_given_up for part in self.evidence)

    @property
    def probes(self) -> float:
        """Ours in flight: what the rate of samples goes by."""
        return max(1.0, self.level - (self.organic or 0.0))

    @property
    def duration_s(self) -> float:
        return self.ended_at_s - self.started_at_s


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What is still believed of the sweep before; built by `core.search.recalibration.warm_start`."""

    published: int  # capacity in force
    sweeps_since_upward_probe: int  # sweeps since a level above it was looked at
    capacities: tuple[float, ...]  # grid, ascending, and the weights on it: all > 0
    weights: tuple[float, ...]
    stages: tuple[Stage, ...] = ()  # of the sweep before, at or above `published`: pooled for the grade


@dataclass(frozen=True, slots=True)
class History:
    """All that a search may know. Versioned: a file of another version is refused, not guessed at."""

    objectives: tuple[Objective, ...]
    stages: tuple[Stage, ...] = ()
    version: int = HISTORY_VERSION
    warm: WarmStart | None = None  # None: a cold sweep
    organic_floor: int = 0  # live requests in flight now: levels up to here cannot be held

    def __post_init__(self) -> None:
        if self.version != HISTORY_VERSION:
            raise ConfigurationError(
                f"This history has version {self.version}; this program reads version {HISTORY_VERSION}.",
                "Replay it with the release that wrote it.",
            )

    @property
    def requests(self) -> int:
        return sum(stage.requests for stage in self.stages)

    @property
    def elapsed_s(self) -> float:
        return self.stages[-1].ended_at_s if self.stages else 0.0

    def at_level(self, level: int) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if stage.level == level)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a sweep may do. The request budget grows with the level (DESIGN section 6): requests + per_level * N."""

    min_level: int = 1
    max_level: int = 512
    requests: int = 1800
    requests_per_level: int = 4
    duration_s: float = 1200.0
    overload_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Highest level of one replica at which the SLA holds. low <= estimate <= high; all >= 0 (0: not even level 1).

    certified: highest level that passed its own full test, below every refuted one; 0 if none did.
    """

    estimate: int
    low: int
    high: int
    certified: int = 0
