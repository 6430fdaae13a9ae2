"""`limits:` of a backend: what live users, and the bill, may have to bear for a sweep."""

from __future__ import annotations

from pydantic import Field

from calibrator.core.admission.admission import SafetyLimits
from calibrator.core.records.harm import AbortLimits
from calibrator.settings.defaults import default_of
from calibrator.settings.values import DurationS, Frozen


class AbortSettings(Frozen):
    """When a sweep ends at once. Only what happens while live requests are in flight counts."""

    live_exceedances: int = Field(
        default=default_of(AbortLimits, "live_exceedances"),
        ge=1,
        description="live requests that one sweep may push over a TTFT or e2e objective, beyond the share it allows; "
        "touching the boundary beside busy users costs up to some 40",
    )
    live_refusals: int = Field(
        default=default_of(AbortLimits, "live_refusals"),
        ge=1,
        description="live requests that the engine refuses, beyond the share that an objective allows; where the queue "
        "is the limit, touching the boundary costs up to some 25",
    )
    probe_failures: int = Field(
        default=default_of(AbortLimits, "probe_failures"),
        ge=1,
        description="probes that fail; refusals count only where the engine does not show how many users it refuses",
    )
    preemptions: int = Field(
        default=default_of(AbortLimits, "preemptions"),
        ge=1,
        description="requests that the engine preempts; the search meets some where memory limits",
    )
    kv_usage_ratio: float = Field(
        default=default_of(AbortLimits, "kv_usage_ratio"),
        alias="kv_usage",
        gt=0.0,
        description="KV memory in use by one scrape; 1 is all of it, above: not watched",
    )
    prefix_hit_fall_ratio: float = Field(
        default=default_of(AbortLimits, "prefix_hit_fall_ratio"),
        alias="prefix_hit_fall",
        gt=0.0,
        le=1.0,
        description="fall of the live prompts' hits in the prefix cache, as a share of what they were before; "
        "1: not watched",
    )
    blind_s: DurationS = Field(
        default=default_of(AbortLimits, "blind_s"),
        alias="blind",
        description="time without an answer of the engine's metrics, once it gave them",
    )


class LimitsSettings(Frozen):
    """Limits that spare live users. Sweeps asked for by hand override windows and start_below, and nothing else."""

    start_below_ratio: float = Field(
        default=default_of(SafetyLimits, "start_below_ratio"),
        alias="start_below",
        gt=0.0,
        description="sweeps start while organic requests in flight are below this share of the cap, counting the "
        "most of the last minute",
    )
    max_probe_share: float | None = Field(
        default=default_of(SafetyLimits, "max_probe_share"),
        gt=0.0,
        description="probes take at most this share of the capacity of all replicas, once one is known; must leave "
        "room for 1.25 replicas' capacity, or no sweep starts; default: no limit",
    )
    tokens: int | None = Field(
        default=default_of(SafetyLimits, "tokens"),
        ge=1,
        description="prompt and output tokens of one sweep, which ends there; default: no limit",
    )
    requests_per_day: int | None = Field(
        default=default_of(SafetyLimits, "requests_per_day"),
        ge=1,
        description="probe requests in 24 hours; no sweep starts that would exceed them",
    )
    tokens_per_day: int | None = Field(
        default=default_of(SafetyLimits, "tokens_per_day"),
        ge=1,
        description="prompt and output tokens of probes in 24 hours; likewise",
    )
    overload_per_day_s: DurationS | None = Field(
        default=default_of(SafetyLimits, "overload_per_day_s"),
        alias="overload_per_day",
        description="time above the objectives because of us in 24 hours",
    )
    abort: AbortSettings = Field(default=AbortSettings(), description="when a sweep ends at once")

    def value(self, *, observe: bool, shadow: bool) -> SafetyLimits:
        return SafetyLimits(
            observe=observe,
            shadow=shadow,
            start_below_ratio=self.start_below_ratio,
            max_probe_share=self.max_probe_share,
            tokens=self.tokens,
            requests_per_day=self.requests_per_day,
            tokens_per_day=self.tokens_per_day,
            overload_per_day_s=self.overload_per_day_s,
            abort=AbortLimits(**dict(self.abort)),
        )
