"""`guard:` of a backend: what protects live users between sweeps."""

from __future__ import annotations

from pydantic import Field

from calibrator.core.live.change_test import GuardPolicy
from calibrator.settings.defaults import default_of
from calibrator.settings.values import DurationS, Frozen


class GuardSettings(Frozen):
    """Lowers the cap when live latencies, according to the engine's own histograms, miss the objectives."""

    enabled: bool = Field(
        default=default_of(GuardPolicy, "enabled"), description="monitor live latencies between sweeps"
    )
    false_alarm_s: DurationS = Field(
        default=default_of(GuardPolicy, "false_alarm_s"),
        alias="false_alarm_every",
        description="mean time between false alarms while twice the allowed share of requests exceeds a limit; a "
        "shorter time detects real breaches sooner",
    )
    cut_ratio: float = Field(
        default=default_of(GuardPolicy, "cut_ratio"),
        gt=0.0,
        le=0.9,
        description="share by which each alarm lowers the cap",
    )
    near_cap_ratio: float = Field(
        default=default_of(GuardPolicy, "near_cap_ratio"),
        ge=0.0,
        le=1.0,
        description="share of the cap that must be in flight for an alarm to lower it; below that the breach is only "
        "reported, because a lower cap would not help",
    )
    settle_s: DurationS = Field(
        default=default_of(GuardPolicy, "settle_s"),
        alias="settle",
        description="time after a cut during which nothing counts, because older requests are still in flight; at "
        "least one residence time",
    )
    clean_s: DurationS = Field(
        default=default_of(GuardPolicy, "clean_s"),
        alias="clean",
        description="time with traffic and no breach before each step back up, never above the last measured cap",
    )
    resweep_s: DurationS = Field(
        default=default_of(GuardPolicy, "resweep_s"),
        alias="resweep",
        description="shortest time between two sweeps that the guard requests",
    )

    def value(self) -> GuardPolicy:
        return GuardPolicy(
            self.enabled,
            self.false_alarm_s,
            self.cut_ratio,
            self.near_cap_ratio,
            self.settle_s,
            self.clean_s,
            self.resweep_s,
        )
