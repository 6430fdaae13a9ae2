"""`triggers:` of a backend: what asks for a sweep before the schedule does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from calibrator.core.admission.triggers import COOL_DOWN_S, TriggerKind, TriggerPolicy
from calibrator.core.workload.drift import DriftPolicy
from calibrator.settings.defaults import default_of
from calibrator.settings.values import DurationS, Frozen


class TriggerSettings(Frozen):
    """Each trigger has a cool-down, so that nothing causes sweeps back to back."""

    off: tuple[Literal["restart", "version", "replicas", "drift", "configuration"], ...] = Field(
        default=(), description="triggers that are not wanted"
    )
    restart_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.RESTART],
        alias="restart",
        description="cool-down: an engine started anew; such a sweep never raises the cap",
    )
    version_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.VERSION], alias="version", description="cool-down: another model or version"
    )
    replicas_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.REPLICAS], alias="replicas", description="cool-down: a replica joined"
    )
    drift_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.DRIFT],
        alias="drift",
        description="cool-down: live prompt lengths or prefix hits are not what they were around the last sweep",
    )
    configuration_s: DurationS = Field(
        default=COOL_DOWN_S[TriggerKind.CONFIGURATION],
        alias="configuration",
        description="cool-down: the last sweep was for other objectives, bounds, model or workload",
    )
    rest_s: DurationS = Field(
        default=default_of(TriggerPolicy, "rest_s"),
        alias="rest",
        description="no triggered sweep so soon after the end of any other",
    )
    min_uptime_s: DurationS = Field(
        default=default_of(TriggerPolicy, "min_uptime_s"),
        alias="min_uptime",
        description="what follows the start of an engine waits until it is up so long",
    )
    drift_over_s: DurationS = Field(
        default=default_of(TriggerPolicy, "drift_over_s"),
        alias="drift_over",
        description="live traffic that is compared",
    )
    prompt_psi: float = Field(
        default=default_of(DriftPolicy, "prompt_psi"),
        gt=0.0,
        description="drift of prompt lengths, as population stability index: 0.1 is little, 0.25 is much",
    )
    hit_ratio: float = Field(
        default=default_of(DriftPolicy, "hit_ratio"),
        gt=0.0,
        le=1.0,
        description="drift of the prefix cache's hits, as difference of the ratios",
    )

    def value(self) -> TriggerPolicy:
        cool_down_s = {kind: getattr(self, f"{kind.value}_s") for kind in TriggerKind if kind.value not in self.off}
        drift = DriftPolicy(self.prompt_psi, self.hit_ratio)
        return TriggerPolicy(cool_down_s, self.rest_s, self.min_uptime_s, drift, self.drift_over_s)
