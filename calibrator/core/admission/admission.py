"""Whether a sweep may start now, and with which limits.

| deferred by | unless | on manual request | until |
|---|---|---|---|
| `observe` | `mode: measure` | deferred too | never |
| `window` | a window is open | may start | the next opening |
| `busy` | organic requests < start_below_ratio * cap, or unknown | may start | traffic falls |
| `requests`, `tokens`, `overload` | spent today + one expected sweep <= daily budget | deferred too | later |
| `probe_share` | the levels within the share reach above the known capacity | deferred too | never |

Windows and traffic say *when* a sweep is convenient, and an operator who requests one has chosen the time. Budgets and
the share are promises to users and to those who pay, so only the configuration changes them.

"Today" is the last 24 hours. The rest of a daily budget becomes the sweep's own limit, so that no day exceeds it by
more than the requests in flight. The share limits levels: probes <= level <= max_probe_share * capacity * replicas.
Below `ROOM_RATIO` times the capacity each sweep would confirm less than the one before, so then none runs.

Called by `service.backend.admission`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from calibrator.core.admission.schedule import Schedule, is_allowed, next_close_at, next_open_at
from calibrator.core.records.harm import AbortLimits, SweepLimits
from calibrator.core.records.history import Bounds
from calibrator.core.search.cost import SweepCost

DAY_S = 86_400.0
ROOM_RATIO = 1.25


class DeferralReason(StrEnum):
    """Values of `sweep_deferred{reason}`."""

    OBSERVE = "observe"
    WINDOW = "window"
    BUSY = "busy"
    REQUESTS = "requests"
    TOKENS = "tokens"
    OVERLOAD = "overload"
    PROBE_SHARE = "probe_share"


@dataclass(frozen=True, slots=True)
class SafetyLimits:
    """Limits that protect live users and the bill. None: not limited."""

    observe: bool = False  # send no probes at all
    shadow: bool = False  # gateways get the fallback, whatever the measurements
    start_below_ratio: float | None = 0.8  # of the cap
    max_probe_share: float | None = None  # of the capacity of all replicas
    tokens: int | None = None  # per sweep, prompt and output
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    overload_per_day_s: float | None = None
    abort: AbortLimits = field(default_factory=AbortLimits)

    @property
    def has_day_budget(self) -> bool:
        return (self.requests_per_day, self.tokens_per_day, self.overload_per_day_s) != (None, None, None)


@dataclass(frozen=True, slots=True)
class Spending:
    """What one sweep cost; `at`: its end."""

    at: float
    requests: int
    tokens: int
    overload_s: float


@dataclass(frozen=True, slots=True)
class Situation:
    """The conditions under which a sweep would start."""

    now: float
    is_asked: bool  # manually requested
    organic: float | None  # recent peak of requests in flight on all replicas; None: unknown
    cap: int  # published for all replicas
    capacity: int | None  # of one replica; None: nothing measured yet
    replicas: int
    spent: Sequence[Spending]  # at least of the last day


@dataclass(frozen=True, slots=True)
class Admitted:
    bounds: Bounds
    limits: SweepLimits


@dataclass(frozen=True, slots=True)
class Deferral:
    """`until`: the next possible time, if known."""

    reason: DeferralReason
    message: str
    until: float | None = None


def admit(
    limits: SafetyLimits, schedule: Schedule, bounds: Bounds, cost: SweepCost, moment: Situation
) -> Admitted | Deferral:
    """The first rule that defers the sweep, in the order of the table; else the limits it starts with."""
    if limits.observe:
        return Deferral(DeferralReason.OBSERVE, f"mode: observe; a sweep would send {cost_words(cost)}")
    held = None if moment.is_asked else _untimely(limits, schedule, moment)
    if held is not None:
        return held
    today = [one for one in moment.spent if one.at > moment.now - DAY_S]
    for budget in _day_budgets(limits, cost):
        held = budget.hold(today)
        if held is not None:
            return held
    return _within_share(limits, bounds, moment) or Admitted(
        _bounds(limits, bounds, moment, today), _limits(limits, schedule, moment, today)
    )


def too_small(limits: SafetyLimits, cost: SweepCost) -> Iterator[tuple[DeferralReason, str]]:
    """Daily budgets that are too small for even one sweep, so that none would ever start; with the cause in words."""
    for budget in _day_budgets(limits, cost):
        if budget.next_cost > budget.limit:
            words = f"{budget.limit:,.0f} {budget.unit} per day are fewer than one sweep takes, {budget.next_cost:,.0f}"
            yield budget.reason, words


def cost_words(cost: SweepCost) -> str:
    tokens = cost.prompt_tokens_expected + cost.output_tokens_expected
    return (
        f"about {cost.requests_expected:,} requests and {tokens:,} tokens "
        f"(at most {cost.requests_bound:,} requests, {cost.duration_bound_s / 60:.0f} minutes)"
    )


def _untimely(limits: SafetyLimits, schedule: Schedule, moment: Situation) -> Deferral | None:
    if not is_allowed(schedule, moment.now):
        return Deferral(DeferralReason.WINDOW, "no window is open", next_open_at(schedule, moment.now))
    if limits.start_below_ratio is None or moment.organic is None:
        return None
    limit = limits.start_below_ratio * moment.cap
    if moment.organic < limit:
        return None
    words = f"{moment.organic:.0f} organic requests in flight; sweeps start below {limit:.0f} of cap {moment.cap}"
    return Deferral(DeferralReason.BUSY, words)


@dataclass(frozen=True, slots=True)
class _DayBudget:
    """`next_cost`: of the next sweep."""

    reason: DeferralReason
    unit: str
    limit: float
    next_cost: float
    of: Callable[[Spending], float]

    def hold(self, today: Sequence[Spending]) -> Deferral | None:
        spent = sum(map(self.of, today))
        if spent + self.next_cost <= self.limit:
            return None
        words = f"{spent:,.0f} of {self.limit:,.0f} {self.unit} per day are spent; a sweep takes {self.next_cost:,.0f}"
        return Deferral(self.reason, words, self._free_at(today, spent))

    def _free_at(self, today: Sequence[Spending], spent: float) -> float | None:
        for one in sorted(today, key=lambda one: one.at):
            spent -= self.of(one)
            if spent + self.next_cost <= self.limit:
                return one.at + DAY_S
        return None


def _day_budgets(limits: SafetyLimits, cost: SweepCost) -> list[_DayBudget]:
    tokens = cost.prompt_tokens_expected + cost.output_tokens_expected
    if limits.tokens is not None:
        tokens = min(tokens, limits.tokens)
    rows: tuple[tuple[DeferralReason, str, float | None, float, Callable[[Spending], float]], ...] = (
        (
            DeferralReason.REQUESTS,
            "requests",
            limits.requests_per_day,
            cost.requests_expected,
            lambda one: one.requests,
        ),
        (DeferralReason.TOKENS, "tokens", limits.tokens_per_day, tokens, lambda one: one.tokens),
        # A sweep's overload is not known in advance: any remaining budget lets it start, and limits it.
        (DeferralReason.OVERLOAD, "overload seconds", limits.overload_per_day_s, 1.0, lambda one: one.overload_s),
    )
    return [_DayBudget(reason, unit, limit, take, of) for reason, unit, limit, take, of in rows if limit is not None]


def _highest_level(limits: SafetyLimits, moment: Situation) -> int | None:
    if limits.max_probe_share is None or moment.capacity is None:
        return None
    return math.floor(limits.max_probe_share * moment.capacity * max(1, moment.replicas))


def _within_share(limits: SafetyLimits, bounds: Bounds, moment: Situation) -> Deferral | None:
    highest = _highest_level(limits, moment)
    if highest is None or moment.capacity is None:
        return None
    needed = min(bounds.max_level, math.ceil(ROOM_RATIO * moment.capacity))
    if highest >= needed:
        return None
    words = (
        f"max_probe_share allows {highest} probes, but to measure one of {moment.replicas} replicas of capacity "
        f"{moment.capacity} takes {needed}; allow a larger share, or name replicas out of rotation to measure on"
    )
    return Deferral(DeferralReason.PROBE_SHARE, words)


def _bounds(limits: SafetyLimits, bounds: Bounds, moment: Situation, today: Sequence[Spending]) -> Bounds:
    highest = _highest_level(limits, moment)
    overload_s = bounds.overload_s
    if limits.overload_per_day_s is not None:
        overload_s = min(overload_s, limits.overload_per_day_s - sum(one.overload_s for one in today))
    max_level = bounds.max_level if highest is None else max(bounds.min_level, min(bounds.max_level, highest))
    return replace(bounds, max_level=max_level, overload_s=overload_s)


def _limits(limits: SafetyLimits, schedule: Schedule, moment: Situation, today: Sequence[Spending]) -> SweepLimits:
    closes_at = math.inf if moment.is_asked else next_close_at(schedule, moment.now)
    return SweepLimits(
        requests=_left(limits.requests_per_day, sum(one.requests for one in today)),
        tokens=_least(limits.tokens, _left(limits.tokens_per_day, sum(one.tokens for one in today))),
        ends_at=None if math.isinf(closes_at) else closes_at,
    )


def _left(budget: int | None, spent: int) -> int | None:
    return None if budget is None else budget - spent


def _least(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)
