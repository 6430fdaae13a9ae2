"""Scrapes of a backend's replicas go in, the sweep that they call for comes out (`core.admission.triggers` says when
and why).

Restarts and versions are watched all the time, traffic only between sweeps. A replica that is gone stays known,
so that a restart shows when it comes back; `FORGET_S` later it is a new one. A URL that answers as changing
processes restarts at every scrape, so its wait for `min_uptime` never ends: it triggers nothing.

The reference of drift is live traffic up to the start of the last sweep, or, if that was too little, what follows it.

Owned by the supervisor, one for each backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from calibrator.core.admission.triggers import Cause, TriggeredSweep, TriggerKind, TriggerPolicy, Triggers
from calibrator.core.publish.checkpoint import TriggerCheckpoint, last_seen, restored_triggers, trigger_checkpoint
from calibrator.core.publish.fleet import FleetLook, Kind, ReplicaLook, is_same_kind, kind_of
from calibrator.core.records.server_load import ServerLoad
from calibrator.core.workload.drift import drift, is_enough, unlike_probes
from calibrator.core.workload.live_mix import LiveMix, counter_fell
from calibrator.service.backend.traffic import TrafficLog

DRIFT_EVERY_S = 60.0
FORGET_S = 86_400.0


@dataclass(slots=True)
class TriggerWatch:
    """`probe_lengths`: prompt lengths as the probes have them, to compare with users'."""

    policy: TriggerPolicy
    log: TrafficLog
    probe_lengths: Sequence[int] = ()
    triggers: Triggers = field(init=False)
    unlike: str = ""  # how live prompts differ from the probes', in words
    _known: dict[str, tuple[ServerLoad, float]] = field(default_factory=dict)  # newest load of a replica, and when
    _kind: Kind | None = None
    _has_scraped: bool = False
    _reference: LiveMix | None = None
    _reference_from_s: float | None = None
    _next_drift_s: float = 0.0

    def __post_init__(self) -> None:
        self.triggers = Triggers(self.policy)

    # ------------------------------------------------------------------------------------------------------ sweeps
    def configured_otherwise(self, words: str, now_s: float) -> None:
        """The last sweep was about something else."""
        self.triggers = self.triggers.with_cause(Cause(TriggerKind.CONFIGURATION, words, now_s))

    def sweep_started(self, now_s: float) -> None:
        self.triggers = self.triggers.sweep_started(now_s)
        before = self.log.mix(now_s, self.policy.drift_over_s)
        self._reference = before if is_enough(before) else None
        self._reference_from_s = None

    def sweep_ended(self, now_s: float, *, has_answered: bool = True) -> None:
        ended = self.triggers.sweep_ended(now_s, has_answered=has_answered)
        self.triggers = ended.without(TriggerKind.DRIFT)
        self._reference_from_s = now_s

    def reported(self, now_s: float) -> None:
        """In place of a sweep: the cause was logged, nothing will be measured."""
        self.sweep_started(now_s)
        self.sweep_ended(now_s)

    # ---------------------------------------------------------------------------------------------------- restarts
    def checkpoint(self, now_s: float) -> TriggerCheckpoint:
        since_s = self._reference_from_s
        return replace(
            trigger_checkpoint(self.triggers, now_s),
            kind=self._kind,
            replicas=tuple(last_seen(url, load) for url, (load, _) in self._known.items()),
            reference=self._reference,
            reference_ago_s=None if since_s is None else now_s - since_s,
        )

    @property
    def stamp(self) -> object:
        """Differs when something happened, and not by the passing of time."""
        known, has_reference = self.triggers, self._reference is not None
        starts = tuple((url, load.process_start) for url, (load, _) in self._known.items())
        spent = tuple(known.spent_s.items())
        return tuple(known.waiting), spent, known.sweep_ended_s, known.owed, self._kind, starts, has_reference

    def restore(self, checkpoint: TriggerCheckpoint, now_s: float) -> None:
        """What was known before the service restarted; what engines did meanwhile shows at the next scrape."""
        self.triggers = restored_triggers(checkpoint, self.triggers, now_s)
        self._kind = self._kind or checkpoint.kind
        known = {one.url: (one.load, now_s) for one in checkpoint.replicas}
        self._known = {**known, **self._known}
        self._has_scraped = self._has_scraped or bool(known)
        self._reference = self._reference or checkpoint.reference
        if checkpoint.reference_ago_s is not None and self._reference_from_s is None:
            self._reference_from_s = now_s - checkpoint.reference_ago_s

    # ----------------------------------------------------------------------------------------------------- scrapes
    def observe(self, scrape: FleetLook, *, is_sweeping: bool = False) -> TriggeredSweep | None:
        """One scrape later: the sweep that is due."""
        for replica in scrape.replicas:
            if replica.load is not None:
                self._note(replica, replica.load, scrape)
        self._note_kind(scrape)
        self._has_scraped = self._has_scraped or bool(self._known)
        self._known = {url: known for url, known in self._known.items() if scrape.at_s - known[1] < FORGET_S}
        if is_sweeping:
            return None
        if scrape.at_s >= self._next_drift_s:
            self._next_drift_s = scrape.at_s + DRIFT_EVERY_S
            self._note_traffic(scrape.at_s)
        return self.triggers.due(scrape.at_s)

    def _note(self, replica: ReplicaLook, load: ServerLoad, scrape: FleetLook) -> None:
        known = self._known.get(replica.url)
        if known is not None and _has_restarted(known[0], load):
            self._fresh(TriggerKind.RESTART, f"{replica.url} started anew", scrape.at_s)
        elif known is None and not replica.is_ready:
            return  # until it counts in the cap
        elif known is None and self._has_scraped:
            self._fresh(TriggerKind.REPLICAS, f"{replica.url} joined", scrape.at_s)
        self._known[replica.url] = (load, scrape.at_s)

    def _note_kind(self, scrape: FleetLook) -> None:
        kinds = [kind_of(replica.load) for replica in scrape.ready if replica.load is not None]
        if not kinds:
            return
        kind, before = max(kinds, key=kinds.count), self._kind
        if before is not None and not is_same_kind(kind, before):
            self._fresh(TriggerKind.VERSION, f"{_words(before)} became {_words(kind)}", scrape.at_s)
        # What is not reported this time is still what it was.
        self._kind = kind if before is None or not is_same_kind(kind, before) else _filled(kind, before)

    def _fresh(self, kind: TriggerKind, words: str, now_s: float) -> None:
        """An engine has started; whatever waited for one that is up long enough waits again."""
        ready_s = now_s + self.policy.min_uptime_s
        self.triggers = self.triggers.with_cause(Cause(kind, words, ready_s))

    def _note_traffic(self, now_s: float) -> None:
        live = self.log.mix(now_s, self.policy.drift_over_s)
        self.unlike = unlike_probes(live, self.probe_lengths, self.policy.drift)
        if self._reference is None:
            since_s = self._reference_from_s
            after = live if since_s is None else self.log.mix(now_s, min(self.policy.drift_over_s, now_s - since_s))
            self._reference = after if is_enough(after) else None
            return
        found = drift(live, self._reference, self.policy.drift)
        if found.words:
            self.triggers = self.triggers.with_cause(Cause(TriggerKind.DRIFT, found.words, now_s))
        else:
            self.triggers = self.triggers.without(TriggerKind.DRIFT)


def _has_restarted(before: ServerLoad, now: ServerLoad) -> bool:
    if before.process_start is not None and now.process_start is not None:
        return before.process_start != now.process_start
    return counter_fell(before, now)


def _filled(kind: Kind, before: Kind) -> Kind:
    engine, model, version = (one if one is not None else known for one, known in zip(kind, before, strict=True))
    return engine, model, version


def _words(kind: Kind) -> str:
    engine, model, version = kind
    return " ".join(part for part in (engine, version, f"({model})" if model else None) if part)
