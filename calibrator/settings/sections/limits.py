"""`limits:` of a backend: what a sweep may cost, in harm to live users and in probes."""

from __future__ import annotations

from pydantic import Field

from calibrator.core.admission.admission import SafetyLimits
from calibrator.core.records.harm import AbortLimits
from calibrator.settings.defaults import default_of
from calibrator.settings.values import DurationS, Frozen


class AbortSettings(Frozen):
    """When a sweep is aborted. Only what happens while live requests are in flight counts."""

    live_exceedances: int = Field(
        default=default_of(AbortLimits, "live_exceedances"),
        ge=1,
        description="live requests that one sweep may push over a TTFT or e2e objective, beyond the share that the "
        "objective allows; reaching the boundary under live traffic costs up to about 40",
    )
    live_refusals: int = Field(
        default=default_of(AbortLimits, "live_refusals"),
        ge=1,
        description="live requests that the engine rejects, beyond the share that an objective allows; if the queue is "
        "the bottleneck, reaching the boundary costs up to about 25",
    )
    probe_failures: int = Field(
        default=default_of(AbortLimits, "probe_failures"),
        ge=1,
        description="failed probes; rejections count only if the engine does not report how many live requests it "
        "rejects",
    )
    preemptions: int = Field(
        default=default_of(AbortLimits, "preemptions"),
        ge=1,
        description="requests that the engine preempts; a search encounters some if memory is the bottleneck",
    )
    kv_usage_ratio: float | None = Field(
        default=default_of(AbortLimits, "kv_usage_ratio"),
        alias="kv_usage",
        gt=0.0,
        description="share of KV cache memory in use at one scrape, 1 is all of it; default: not monitored, because "
        "full memory alone harms nobody; preemptions and late responses do, and are monitored",
    )
    prefix_hit_fall_ratio: float = Field(
        default=default_of(AbortLimits, "prefix_hit_fall_ratio"),
        alias="prefix_hit_fall",
        gt=0.0,
        le=1.0,
        description="fall of the live prefix-cache hit rate, as a share of the rate before the sweep; 1: not monitored",
    )
    blind_s: DurationS = Field(
        default=default_of(AbortLimits, "blind_s"),
        alias="blind",
        description="time without a response from the engine's metrics, once it has served them",
    )


class LimitsSettings(Frozen):
    """Limits that protect live users. A sweep started by an operator overrides only windows and start_below."""

    start_below_ratio: float = Field(
        default=default_of(SafetyLimits, "start_below_ratio"),
        alias="start_below",
        gt=0.0,
        description="sweeps start only while live requests in flight, at their peak of the last minute, are below this "
        "share of the cap",
    )
    max_probe_share: float | None = Field(
        default=default_of(SafetyLimits, "max_probe_share"),
        gt=0.0,
        description="largest share of the capacity of all replicas that probes may use, once it is known; must allow "
        "1.25 times the capacity of one replica, or no sweep starts; default: no limit",
    )
    tokens: int | None = Field(
        default=default_of(SafetyLimits, "tokens"),
        ge=1,
        description="prompt and output tokens after which a sweep ends; default: no limit",
    )
    requests_per_day: int | None = Field(
        default=default_of(SafetyLimits, "requests_per_day"),
        ge=1,
        description="probe requests in 24 hours; a sweep expected to exceed them does not start",
    )
    tokens_per_day: int | None = Field(
        default=default_of(SafetyLimits, "tokens_per_day"),
        ge=1,
        description="prompt and output tokens of probes in 24 hours; likewise",
    )
    overload_per_day_s: DurationS | None = Field(
        default=default_of(SafetyLimits, "overload_per_day_s"),
        alias="overload_per_day",
        description="time for which probes may push the backend over its objectives in 24 hours",
    )
    abort: AbortSettings = Field(default=AbortSettings(), description="when a sweep is aborted")

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
