"""What guard, triggers and live traffic of a backend know and a restart of the service must not lose, as stored values.

**No clock is asked.** Everything is a duration: how long ago something was when it was stored, how long it still had to
wait. Time that passed while the service was down counts for nothing, so a wall clock that was set meanwhile can neither
release every cool-down at once nor hold one for longer than it is. The price: a cool-down ends later by the time that
the service was down.

| of | kept | lost |
|---|---|---|
| triggers | causes that wait, cool-downs, answers owed, the reference of drift, what each replica last reported | - |
| guard | the rest until it may ask for another sweep | its evidence: minutes of traffic bring it back |
| traffic | slices of live traffic, the newest `SLICES_KEPT` | the running minute |

What each replica last reported (its start, or else its counters) shows a restart of the engine that happened meanwhile.

Pure; called by the watches, stored by `service.backend.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from calibrator.core.admission.triggers import Cause, TriggerKind, Triggers
from calibrator.core.publish.fleet import Kind
from calibrator.core.records.server_load import Histogram, ServerLoad
from calibrator.core.workload.live_mix import LiveMix

SLICES_KEPT = 400  # four days of quarters of an hour; some 500 bytes each


# ----------------------------------------------------------------------------------------------------------- triggers
@dataclass(frozen=True, slots=True)
class WaitingCause:
    """`wait_s`: until it may be measured."""

    kind: TriggerKind
    words: str
    wait_s: float


@dataclass(frozen=True, slots=True)
class KnownReplica:
    url: str
    load: ServerLoad  # only what tells a restart, and which engine it is


@dataclass(frozen=True, slots=True)
class TriggerCheckpoint:
    """`..._ago_s`: before the moment of saving."""

    waiting: tuple[WaitingCause, ...] = ()
    spent_ago_s: Mapping[TriggerKind, float] = field(default_factory=dict)
    sweep_ended_ago_s: float | None = None
    owed: tuple[TriggerKind, ...] = ()
    kind: Kind | None = None
    replicas: tuple[KnownReplica, ...] = ()
    reference: LiveMix | None = None
    reference_ago_s: float | None = None  # without a reference: since when one is looked for


def trigger_checkpoint(triggers: Triggers, now_s: float) -> TriggerCheckpoint:
    """But for what `core.admission.triggers` does not know."""
    causes = triggers.waiting.values()
    ended_s = triggers.sweep_ended_s
    return TriggerCheckpoint(
        waiting=tuple(WaitingCause(one.kind, one.words, max(0.0, one.ready_s - now_s)) for one in causes),
        spent_ago_s={kind: now_s - spent_s for kind, spent_s in triggers.spent_s.items()},
        sweep_ended_ago_s=None if ended_s is None else now_s - ended_s,
        owed=tuple(sorted(triggers.owed)),
    )


def restored_triggers(checkpoint: TriggerCheckpoint, known: Triggers, now_s: float) -> Triggers:
    """`known`: what has happened since the start; it is newer than the checkpoint."""
    policy = known.policy
    ended_s = None if checkpoint.sweep_ended_ago_s is None else now_s - max(0.0, checkpoint.sweep_ended_ago_s)
    waiting = {
        one.kind: Cause(one.kind, one.words, now_s + min(max(0.0, one.wait_s), policy.min_uptime_s))
        for one in checkpoint.waiting
        if one.kind in policy.cool_down_s
    }
    spent_s = {kind: now_s - max(0.0, ago_s) for kind, ago_s in checkpoint.spent_ago_s.items()}
    return Triggers(
        policy,
        waiting={**waiting, **known.waiting},
        spent_s={**spent_s, **known.spent_s},
        sweep_ended_s=ended_s if known.sweep_ended_s is None else known.sweep_ended_s,
        owed=known.owed | frozenset(checkpoint.owed),
    )


def last_seen(url: str, load: ServerLoad) -> KnownReplica:
    """Counters only grow, so any later value that is lower is a restart."""
    tells_start = load.process_start is not None
    return KnownReplica(
        url,
        ServerLoad(
            load.engine,
            process_start=load.process_start,
            finished_total=None if tells_start else load.finished_total,
            output_tokens_total=None if tells_start else load.output_tokens_total,
            prompt_tokens_total=None if tells_start else load.prompt_tokens_total,
            model=load.model,
            version=load.version,
        ),
    )


# -------------------------------------------------------------------------------------------------------------- guard
@dataclass(frozen=True, slots=True)
class GuardCheckpoint:
    resweep_wait_s: float = 0.0  # until it may ask for another sweep


# ------------------------------------------------------------------------------------------------------------ traffic
@dataclass(frozen=True, slots=True)
class PackedHistogram:
    """Observations by bucket, of the bounds with this index in the checkpoint's list."""

    bounds: int
    parts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PackedSlice:
    """A `LiveMix` without the bounds that it shares with all others."""

    ago_s: float  # its start
    rest: LiveMix  # but for its histograms
    prompts: PackedHistogram | None = None
    outputs: PackedHistogram | None = None


@dataclass(frozen=True, slots=True)
class TrafficCheckpoint:
    """Oldest first."""

    bounds: tuple[tuple[float, ...], ...] = ()
    slices: tuple[PackedSlice, ...] = ()


def packed(slices: Sequence[tuple[float, LiveMix]]) -> TrafficCheckpoint:
    """`slices`: seconds since the start of each, oldest first."""
    known: dict[tuple[float, ...], int] = {}

    def pack(histogram: Histogram | None) -> PackedHistogram | None:
        if histogram is None:
            return None
        index = known.setdefault(histogram.bounds, len(known))
        return PackedHistogram(index, tuple(after - before for before, after in pairwise((0.0, *histogram.counts))))

    kept = tuple(
        PackedSlice(ago_s, replace(mix, prompts=None, outputs=None), pack(mix.prompts), pack(mix.outputs))
        for ago_s, mix in slices[-SLICES_KEPT:]
    )
    return TrafficCheckpoint(tuple(known), kept)


def unpacked(checkpoint: TrafficCheckpoint) -> list[tuple[float, LiveMix]]:
    """Raises IndexError, ValueError if the checkpoint does not fit together."""

    def unpack(one: PackedHistogram | None) -> Histogram | None:
        if one is None:
            return None
        bounds = checkpoint.bounds[one.bounds]
        if len(bounds) != len(one.parts):
            raise ValueError("a histogram has more or fewer buckets than bounds")
        return Histogram(bounds, tuple(accumulate(one.parts)))

    return [
        (max(0.0, one.ago_s), replace(one.rest, prompts=unpack(one.prompts), outputs=unpack(one.outputs)))
        for one in checkpoint.slices
    ]
