"""An operator's override of the published cap.

The override is laid over the recommendation and does not replace it: sweeps and the guard continue to update the
underlying recommendation, which is served again, in its current form, when the override ends. An override takes
precedence over both, but not over the configured `min_cap..max_cap`. It is served in full even during a sweep: other
caps are reduced by the slots reserved for probes, whereas probes then come on top of the override.

It always expires: a forgotten override would be a cap that was never measured. The rest of the recommendation is kept
only where it still holds: rates and queue wait describe the measured concurrency, which bounds a lower one from above
and says nothing about a higher one. An override has no grade.

Called by `service.publishing.overrides`.
"""

from __future__ import annotations

from dataclasses import replace

from calibrator.core.publish.recommendation import PublishPolicy, scaled
from calibrator.core.publish.snapshot import Override, Recommendation, State


def overlaid(underlying: Recommendation, override: Override, policy: PublishPolicy) -> Recommendation:
    """What is served while the override is in force."""
    cap = policy.clamp(override.cap)
    asked = "" if cap == override.cap else f"; {override.cap} requested, clamped to {policy.min_cap}..{policy.max_cap}"
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
