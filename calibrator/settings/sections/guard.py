"""`guard:` of a backend: the watch over live users between sweeps."""

from __future__ import annotations

from pydantic import Field

from calibrator.core.live.change_test import GuardPolicy
from calibrator.settings.defaults import default_of
from calibrator.settings.values import DurationS, Frozen


class GuardSettings(Frozen):
    """Lowers the cap when live users' latencies break the objectives, as the engine's own histograms tell."""

    enabled: bool = Field(default=default_of(GuardPolicy, "enabled"), description="watch live users between sweeps")
    false_alarm_s: DurationS = Field(
        default=default_of(GuardPolicy, "false_alarm_s"),
        alias="false_alarm_every",
        description="mean time between false alarms while twice the allowance exceeds a limit; shorter: "
        "a real breach is found sooner",
    )
    cut_ratio: float = Field(
        default=default_of(GuardPolicy, "cut_ratio"), gt=0.0, le=0.9, description="taken off the cap at each alarm"
    )
    near_cap_ratio: float = Field(
        default=default_of(GuardPolicy, "near_cap_ratio"),
        ge=0.0,
        le=1.0,
        description="share of the cap that must be in flight for a cut; below, the breach is only reported: a lower "
        "cap would not help",
    )
    settle_s: DurationS = Field(
        default=default_of(GuardPolicy, "settle_s"),
        alias="settle",
        description="after a cut nothing counts for this time, at least one residence: older requests are under way",
    )
    clean_s: DurationS = Field(
        default=default_of(GuardPolicy, "clean_s"),
        alias="clean",
        description="traffic without a breach before each step back up, never above the last measured cap",
    )
    resweep_s: DurationS = Field(
        default=default_of(GuardPolicy, "resweep_s"),
        alias="resweep",
        description="least time between two sweeps that the guard asks for",
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
