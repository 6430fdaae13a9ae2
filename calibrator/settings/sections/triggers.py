"""`triggers:` of a backend: what requests a sweep ahead of schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from calibrator.core.admission.triggers import COOL_DOWN_S, TriggerKind, TriggerPolicy
from calibrator.core.workload.drift import DriftPolicy
from calibrator.settings.defaults import default_of
from calibrator.settings.values import DurationS, Frozen


class TriggerSettings(Frozen):
    """Each trigger has a cool-down, so that none can cause sweeps back to back."""

    off: tuple[Literal["restart", "version", "replicas", "drift", "configuration"], ...] = Field(
        default=(), description="triggers to disable"
    )
    restart_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.RESTART],
        alias="restart",
        description="cool-down after an engine restart; such a sweep never raises the cap",
    )
    version_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.VERSION],
        alias="version",
        description="cool-down after a change of model or engine version",
    )
    replicas_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.REPLICAS], alias="replicas", description="cool-down after a replica was added"
    )
    drift_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.DRIFT],
        alias="drift",
        description="cool-down after drift: live prompt lengths or prefix-cache hits differ from those at the last "
        "sweep",
    )
    configuration_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.CONFIGURATION],
        alias="configuration",
        description="cool-down after a change of objectives, bounds, model or workload since the last sweep",
    )
    rest_s: DurationS = Field(
        default=default_of(TriggerPolicy, "rest_s"),
        alias="rest",
        description="shortest time between the end of any sweep and a triggered one",
    )
    min_uptime_s: DurationS = Field(
        default=default_of(TriggerPolicy, "min_uptime_s"),
        alias="min_uptime",
        description="time that an engine must be up before a trigger caused by its start takes effect",
    )
    drift_over_s: DurationS = Field(
        default=default_of(TriggerPolicy, "drift_over_s"),
        alias="drift_over",
        description="period of live traffic to compare",
    )
    prompt_psi: float = Field(
        default=default_of(DriftPolicy, "prompt_psi"),
        gt=0.0,
        description="drift of prompt lengths, as population stability index; 0.1 is small, 0.25 is large",
    )
    hit_ratio: float = Field(
        default=default_of(DriftPolicy, "hit_ratio"),
        gt=0.0,
        le=1.0,
        description="drift of the prefix-cache hit rate, as difference of the rates",
    )

    def value(self) -> TriggerPolicy:
        cool_down_s = {kind: getattr(self, f"{kind.value}_s") for kind in TriggerKind if kind.value not in self.off}
        drift = DriftPolicy(self.prompt_psi, self.hit_ratio)
        return TriggerPolicy(cool_down_s, self.rest_s, self.min_uptime_s, drift, self.drift_over_s)
