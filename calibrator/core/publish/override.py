"""A person's pin over what is published.

The override lies over the recommendation and does not replace it: sweeps and the guard go on deciding against the
recommendation underlying, which is served again, as it is by then, when the override ends. It wins over both, and loses
to the configured `min_cap..max_cap`, which say what the backend may ever get. It is served whole, also beside a running
sweep, for whose probes any other cap gives way; they then come on top of it.

It always ends by itself: a pin that nobody remembers is the cap that nobody measured. What the recommendation says
beside its cap is kept only where it still holds: rates and queue wait describe measured concurrency, which bounds a
lower one from above and says nothing about a higher one. A pin has no grade.

Called by `service.publishing.overrides`.
"""

from __future__ import annotations

from dataclasses import replace

from calibrator.core.publish.recommendation import PublishPolicy, scaled
from calibrator.core.publish.snapshot import Override, Recommendation, State


def overlaid(underlying: Recommendation, override: Override, policy: PublishPolicy) -> Recommendation:
    """What is served while the override is in force."""
    cap = policy.clamp(override.cap)
    asked = "" if cap == override.cap else f"; asked for {override.cap}, clamped to {policy.min_cap}..{policy.max_cap}"
    is_lower = cap <= underlying.cap
    return replace(
        underlying,
        cap=cap,
        replica_cap=max(1, cap // underlying.replicas),
        state=State.OVERRIDDEN,
        grade=None,
        reason=f"{override.author}: {override.reason}{asked}",
        published_at=override.set_at,
        valid_until=override.expires_at,
        rates=None if underlying.rates is None else scaled(underlying.rates, min(1.0, cap / underlying.cap)),
        max_queue_wait_s=underlying.max_queue_wait_s if is_lower else None,
    )
