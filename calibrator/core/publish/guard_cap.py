"""How the guard changes a published recommendation: down by a ratio at once, and back up in steps.

    cut      cap <- max(min_cap, floor(cap * (1 - cut_ratio))), by at least one; state `guarded`; `before_cut` keeps
             what was published before the first cut
    step up  cap <- min(before_cut, floor(cap / (1 - cut_ratio))), by at least one; at `before_cut` the guarded state
    ends

The recommendation carries `before_cut`, so the guarded cap and the steps back up survive a restart. `replica_cap` moves
likewise, each within its own bound: rounding never lifts either above what was certified. A sweep that calibrates
publishes a new recommendation, which ends the guarded state.

Called by `service.supervisor`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from calibrator.core.live.change_test import GuardAction, GuardEvent
from calibrator.core.publish.recommendation import PublishPolicy, scaled
from calibrator.core.publish.snapshot import CapBeforeCut, Recommendation, State


def after_event(
    event: GuardEvent, known: Recommendation, cut_ratio: float, policy: PublishPolicy, now: float
) -> Recommendation | None:
    """None: what is published stays."""
    if event.action is GuardAction.CUT:
        return cut(known, cut_ratio, event.words, policy, now)
    if event.action is GuardAction.RAISE:
        return step_up(known, cut_ratio, event.words, policy, now)
    return None


def cut(
    known: Recommendation, cut_ratio: float, words: str, policy: PublishPolicy, now: float
) -> Recommendation | None:
    """None: it cannot go lower."""
    cap = policy.clamp(_lower(known.cap, cut_ratio))
    if cap >= known.cap:
        return None
    before_cut = known.before_cut or CapBeforeCut(known.cap, known.replica_cap, known.state, now)
    reason = f"{words}; lowered from {known.cap} to {cap}, {before_cut.cap} was published before"
    replica_cap = _lower(known.replica_cap, cut_ratio)
    return replace(_moved(known, cap, replica_cap, reason, now), state=State.GUARDED, before_cut=before_cut)


def step_up(
    known: Recommendation, cut_ratio: float, words: str, policy: PublishPolicy, now: float
) -> Recommendation | None:
    """None: nothing is guarded."""
    before_cut = known.before_cut
    if known.state is not State.GUARDED or before_cut is None:
        return None
    cap = policy.clamp(min(before_cut.cap, _higher(known.cap, cut_ratio)))
    is_back = cap >= min(before_cut.cap, policy.clamp(before_cut.cap))
    replica_cap = (
        before_cut.replica_cap if is_back else min(before_cut.replica_cap, _higher(known.replica_cap, cut_ratio))
    )
    reason = f"{words}; raised from {known.cap} to {cap}, {before_cut.cap} was published before the guard's cut"
    state = before_cut.state if is_back else State.GUARDED
    moved = _moved(known, cap, min(replica_cap, cap), reason, now)
    return replace(moved, state=state, before_cut=None if is_back else before_cut)


def _moved(known: Recommendation, cap: int, replica_cap: int, reason: str, now: float) -> Recommendation:
    return replace(
        known,
        version=known.version + 1,
        cap=cap,
        replica_cap=replica_cap,
        reason=reason,
        rates=None if known.rates is None else scaled(known.rates, cap / known.cap),
        published_at=now,
    )


def _lower(cap: int, cut_ratio: float) -> int:
    return max(1, min(cap - 1, math.floor(cap * (1.0 - cut_ratio) + 1e-9)))


def _higher(cap: int, cut_ratio: float) -> int:
    return max(cap + 1, math.floor(cap / (1.0 - cut_ratio) + 1e-9))
