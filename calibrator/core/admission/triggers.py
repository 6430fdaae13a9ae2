"""What asks for a sweep before the schedule does, and how often it may.

| trigger | seen as | waits until | sweep |
|---|---|---|---|
| restart | another process start, or else a counter that fell | the newest engine is up `min_uptime` | never raises |
| version | the ready replicas' engine, model or version is another | likewise | cold |
| replicas | a ready replica that was never seen before | likewise | warm |
| drift | `core.workload.drift`: live traffic against that around the last sweep | - | warm |
| configuration | objectives, model, workload or bounds differ from the last sweep's | - | cold |

A fresh engine is faster, or slower, than it will be: caches are empty, memory is not fragmented, kernels are still
being tuned. So what follows a restart waits, may lower the cap, and never raises it. A replica that goes away triggers
nothing: the cap falls with it at once, and the others did not change.

**Cool-down.** A trigger of a kind is spent when a sweep starts that saw its cause, whoever asked for that sweep; the
next of that kind waits its cool-down from then. Besides, no triggered sweep starts within `rest_s` of the end of any
other. What happens meanwhile is not forgotten, but is one sweep at the end of it. So the sweeps that triggers can cause
are at most one in `rest_s`, and of each kind one in its cool-down, whatever engines and traffic do.

**Owed answers.** A sweep that said nothing (interrupted, aborted, in error) leaves what it was for unanswered: the next
one, whatever starts it, is as careful as that one had to be. It does not raise after a restart, nor while one waits to
be measured, and is cold after another version. `service.backend.checkpoints` keeps all this over a restart of the
service.

Pure; called by `service.backend.triggers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from calibrator.core.workload.drift import DriftPolicy


class TriggerKind(StrEnum):
    """Contract words; the first of those that are due names the sweep."""

    CONFIGURATION = "configuration"
    VERSION = "version"
    RESTART = "restart"
    REPLICAS = "replicas"
    DRIFT = "drift"


COLD = (TriggerKind.CONFIGURATION, TriggerKind.VERSION)  # what was measured before was something else

COOL_DOWN_S: Mapping[TriggerKind, float] = {
    TriggerKind.CONFIGURATION: 600.0,
    TriggerKind.VERSION: 3_600.0,
    TriggerKind.RESTART: 3_600.0,
    TriggerKind.REPLICAS: 3_600.0,
    TriggerKind.DRIFT: 21_600.0,
}


@dataclass(frozen=True, slots=True)
class TriggerPolicy:
    """`cool_down_s`: of the kinds that are on."""

    cool_down_s: Mapping[TriggerKind, float] = field(default_factory=lambda: dict(COOL_DOWN_S))
    rest_s: float = 900.0  # after any sweep
    min_uptime_s: float = 600.0
    drift: DriftPolicy = field(default_factory=DriftPolicy)
    drift_over_s: float = 3_600.0  # of live traffic


@dataclass(frozen=True, slots=True)
class Cause:
    """Something happened. `ready_s`: monotonic time from which on it may be measured."""

    kind: TriggerKind
    words: str
    ready_s: float


@dataclass(frozen=True, slots=True)
class TriggeredSweep:
    """A sweep to be queued."""

    reason: str
    kinds: tuple[TriggerKind, ...]
    may_raise: bool
    is_warm: bool


@dataclass(frozen=True, slots=True)
class Triggers:
    """What waits, and when each kind last had its sweep. Times are monotonic."""

    policy: TriggerPolicy
    waiting: Mapping[TriggerKind, Cause] = field(default_factory=dict)
    spent_s: Mapping[TriggerKind, float] = field(default_factory=dict)
    sweep_ended_s: float | None = None
    owed: frozenset[TriggerKind] = frozenset()  # a sweep for them began, and has not said anything

    def with_cause(self, cause: Cause) -> Triggers:
        """The newest of a kind stands for all of them."""
        if cause.kind not in self.policy.cool_down_s:
            return self
        return replace(self, waiting={**self.waiting, cause.kind: cause})

    def without(self, kind: TriggerKind) -> Triggers:
        """The cause is gone."""
        return replace(self, waiting={known: cause for known, cause in self.waiting.items() if known is not kind})

    def sweep_started(self, now_s: float) -> Triggers:
        """Any sweep answers every cause that was ready to be measured when it began."""
        seen = {kind for kind, cause in self.waiting.items() if cause.ready_s <= now_s}
        waiting = {kind: cause for kind, cause in self.waiting.items() if kind not in seen}
        spent_s = {**self.spent_s, **dict.fromkeys(seen, now_s)}
        return replace(self, waiting=waiting, spent_s=spent_s, owed=self.owed | seen)

    def sweep_ended(self, now_s: float, *, has_answered: bool = True) -> Triggers:
        return replace(self, sweep_ended_s=now_s, owed=frozenset() if has_answered else self.owed)

    @property
    def may_raise(self) -> bool:
        """Whether a sweep that begins now, for whatever reason, may."""
        return TriggerKind.RESTART not in self.owed and TriggerKind.RESTART not in self.waiting

    @property
    def is_warm(self) -> bool:
        """Whether what was measured before is still believed."""
        return self.owed.isdisjoint(COLD)

    def due(self, now_s: float) -> TriggeredSweep | None:
        """The sweep for everything that may be measured now; None: nothing."""
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
        """What a sweep that begins now answers, whoever asked for it."""
        ready = [self.waiting[kind] for kind in TriggerKind if kind in self.waiting]
        return _words(cause for cause in ready if cause.ready_s <= now_s)

    def _is_due(self, kind: TriggerKind, now_s: float) -> bool:
        spent_s = self.spent_s.get(kind)
        is_cool = spent_s is None or now_s - spent_s >= self.policy.cool_down_s[kind]
        return is_cool and self.waiting[kind].ready_s <= now_s


def _words(causes: Iterable[Cause]) -> str:
    return "; ".join(f"{cause.kind.value}: {cause.words}" for cause in causes)
