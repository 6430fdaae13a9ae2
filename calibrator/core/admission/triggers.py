"""What triggers a sweep ahead of the schedule, and how often.

| trigger | detected as | waits until | sweep |
|---|---|---|---|
| restart | `core.records.server_load.has_restarted` | the newest engine has been up for `min_uptime` | never raises |
| version | a new engine, model or version on the ready replicas | likewise | cold |
| replicas | a ready replica that was not known before | likewise | warm |
| drift | `core.workload.drift`: live traffic against that around the last sweep | - | warm |
| configuration | objectives, model, workload or bounds differ from the last sweep's | - | cold |

A fresh engine is faster or slower than it will be: caches are empty, memory is not fragmented, kernels are still being
tuned. So a sweep after a restart waits; it may lower the cap, and never raises it. A replica that disappears triggers
nothing: the cap falls with it at once, and the others did not change.

**Cool-down.** A trigger is spent when any sweep starts after its cause was ready to be measured; the next of its kind
waits for the cool-down from then. In addition, no triggered sweep starts within `rest_s` of the end of another sweep.
Causes that occur in between are kept and lead to one sweep afterwards. So triggers cause at most one sweep per
`rest_s`, and of each kind one per cool-down, whatever engines and traffic do.

**Owed answers.** A sweep without a result (interrupted, aborted, failed) leaves its cause unanswered. The next sweep,
whatever starts it, is as careful as that one had to be: it does not raise after a restart, nor while one waits to be
measured, and it is cold after a new version. `service.backend.checkpoints` keeps this state across restarts of the
service.

Called by `service.backend.triggers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from calibrator.core.workload.drift import DriftPolicy


class TriggerKind(StrEnum):
    """In the order in which causes are named."""

    CONFIGURATION = "configuration"
    VERSION = "version"
    RESTART = "restart"
    REPLICAS = "replicas"
    DRIFT = "drift"


COLD = (TriggerKind.CONFIGURATION, TriggerKind.VERSION)  # earlier measurements are of something else

COOL_DOWN_S: Mapping[TriggerKind, float] = {
    TriggerKind.CONFIGURATION: 600.0,
    TriggerKind.VERSION: 3_600.0,
    TriggerKind.RESTART: 3_600.0,
    TriggerKind.REPLICAS: 3_600.0,
    TriggerKind.DRIFT: 21_600.0,
}


@dataclass(frozen=True, slots=True)
class TriggerPolicy:
    """`cool_down_s`: of the kinds that are enabled."""

    cool_down_s: Mapping[TriggerKind, float] = field(default_factory=lambda: dict(COOL_DOWN_S))
    rest_s: float = 900.0  # after any sweep
    min_uptime_s: float = 600.0
    drift: DriftPolicy = field(default_factory=DriftPolicy)
    drift_over_s: float = 3_600.0  # of live traffic


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a sweep is wanted. `ready_s`: monotonic time from which it may be measured."""

    kind: TriggerKind
    words: str
    ready_s: float


@dataclass(frozen=True, slots=True)
class TriggeredSweep:
    """A sweep to queue."""

    reason: str
    kinds: tuple[TriggerKind, ...]
    may_raise: bool
    is_warm: bool


@dataclass(frozen=True, slots=True)
class Triggers:
    """Waiting causes, and when each kind last had its sweep. Times are monotonic."""

    policy: TriggerPolicy
    waiting: Mapping[TriggerKind, Cause] = field(default_factory=dict)
    spent_s: Mapping[TriggerKind, float] = field(default_factory=dict)
    sweep_ended_s: float | None = None
    owed: frozenset[TriggerKind] = frozenset()  # a sweep for them began and had no result

    def with_cause(self, cause: Cause) -> Triggers:
        """The newest cause of a kind replaces earlier ones."""
        if cause.kind not in self.policy.cool_down_s:
            return self
        return replace(self, waiting={**self.waiting, cause.kind: cause})

    def without(self, kind: TriggerKind) -> Triggers:
        """The cause no longer exists."""
        return replace(self, waiting={known: cause for known, cause in self.waiting.items() if known is not kind})

    def sweep_started(self, now_s: float) -> Triggers:
        """Any sweep answers every cause that is ready to be measured when it begins."""
        seen = {kind for kind, cause in self.waiting.items() if cause.ready_s <= now_s}
        waiting = {kind: cause for kind, cause in self.waiting.items() if kind not in seen}
        spent_s = {**self.spent_s, **dict.fromkeys(seen, now_s)}
        return replace(self, waiting=waiting, spent_s=spent_s, owed=self.owed | seen)

    def sweep_ended(self, now_s: float, *, has_answered: bool = True) -> Triggers:
        return replace(self, sweep_ended_s=now_s, owed=frozenset() if has_answered else self.owed)

    @property
    def may_raise(self) -> bool:
        """Whether a sweep that begins now, for any reason, may raise the cap."""
        return TriggerKind.RESTART not in self.owed and TriggerKind.RESTART not in self.waiting

    @property
    def is_warm(self) -> bool:
        """Whether earlier measurements are still valid."""
        return self.owed.isdisjoint(COLD)

    def due(self, now_s: float) -> TriggeredSweep | None:
        """The sweep for all causes that may be measured now; None: there are none."""
        if self.sweep_ended_s is not None and now_s - self.sweep_ended_s < self.policy.rest_s:
            return None
        ready = [self.waiting[kind] for kind in TriggerKind if kind in self.waiting and self._is_due(kind, now_s)]
        if not ready:
            return None
        kinds = tuple(cause.kind for cause in ready)
        return TriggeredSweep(
            reason=_words(ready),
            kinds=kinds,
            may_raise=self.may_raise,
            is_warm=self.is_warm and not any(kind in COLD for kind in kinds),
        )

    def why(self, now_s: float) -> str:
        """The causes that a sweep beginning now answers, whatever starts it."""
        ready = [self.waiting[kind] for kind in TriggerKind if kind in self.waiting]
        return _words(cause for cause in ready if cause.ready_s <= now_s)

    def _is_due(self, kind: TriggerKind, now_s: float) -> bool:
        spent_s = self.spent_s.get(kind)
        is_cool = spent_s is None or now_s - spent_s >= self.policy.cool_down_s[kind]
        return is_cool and self.waiting[kind].ready_s <= now_s


def _words(causes: Iterable[Cause]) -> str:
    return "; ".join(f"{cause.kind.value}: {cause.words}" for cause in causes)
