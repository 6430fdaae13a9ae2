"""The configuration file as a tree. A field's description states unit and reason: reference and messages come from it.

Attribute names carry units (`every_s`), keys of the file do not: their values do (`6h`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from calibrator.core.admission.admission import too_small
from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.records.history import Bounds
from calibrator.core.search.cost import can_certify, judged_share, sweep_cost
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.core.workload.mirror import MirrorPolicy
from calibrator.errors import ConfigurationError
from calibrator.ports.sweeps import BackendPlan, Target
from calibrator.settings.defaults import default_of
from calibrator.settings.problems import Problem, refuse
from calibrator.settings.sections.gateways import GatewaysSettings
from calibrator.settings.sections.guard import GuardSettings
from calibrator.settings.sections.limits import LimitsSettings
from calibrator.settings.sections.load_generator import LoadSettings
from calibrator.settings.sections.mirror import MirrorSettings, PrefixReuse
from calibrator.settings.sections.replicas import ReplicasSettings, with_url
from calibrator.settings.sections.store import StoreSettings
from calibrator.settings.sections.tls import Network, TlsSettings
from calibrator.settings.sections.tracing import TracingSettings
from calibrator.settings.sections.triggers import TriggerSettings
from calibrator.settings.traces import read_trace
from calibrator.settings.values import (
    ApiUrl,
    DurationS,
    File,
    Frozen,
    HttpUrl,
    MinuteOfDay,
    Name,
    ObjectiveText,
    Secret,
    TimeZone,
)

Text = Annotated[str, Field(min_length=1)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
VALID_FOR_SWEEPS = 3  # two sweeps in a row may fail before a recommendation counts as stale


def _refuse_disorder(low: int, high: int) -> None:
    if low > high:
        refuse(Problem("min", f"{low} is above max {high}.", "Give min <= max."))


class ListenSettings(Frozen):
    """Where the service answers."""

    host: Text = Field(
        default="127.0.0.1", description="address to bind; 0.0.0.0 answers everybody, hence not the default"
    )
    port: int = Field(default=8300, ge=0, le=65535, description="TCP port; 0 takes a free one")
    tls: TlsSettings | None = Field(default=None, description="HTTPS; default: plain HTTP")
    proxies: tuple[Network, ...] = Field(
        default=(),
        description="addresses or networks of reverse proxies whose X-Forwarded-For and -Proto are believed",
    )


class AuthSettings(Frozen):
    """Bearer tokens. Without an operator token there is no route that writes."""

    operator_tokens: tuple[Secret, ...] = Field(
        default=(), description="may start sweeps; several, so that one can be rotated"
    )
    read_tokens: tuple[Secret, ...] = Field(default=(), description="may read; none: reading is open")


class SweepsSettings(Frozen):
    """Limits over all backends."""

    max_parallel: int = Field(
        default=1, ge=1, le=64, description="sweeps at a time, one per engine group; each is a process of its own"
    )


class LogSettings(Frozen):
    """Lines on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe level written"
    )
    format: Literal["json", "console"] = Field(default="json", description="json for machines, console for people")


class WindowSettings(Frozen):
    """A weekly time window."""

    days: tuple[Day, ...] = Field(default=DAYS, min_length=1, description="days on which the window starts")
    from_minute: MinuteOfDay = Field(alias="from", description='start, local time, as "22:00"')
    to_minute: MinuteOfDay = Field(alias="to", description='end, as "06:00"; not after the start: on the next day')
    time_zone: TimeZone = Field(default="UTC", description="IANA time zone; summer time is followed")


class BoundsSettings(Frozen):
    """In-flight levels that a sweep may hold on one replica."""

    min: int = Field(
        default=default_of(Bounds, "min_level"), ge=1, le=100_000, description="lowest level, requests in flight"
    )
    max: int = Field(
        default=default_of(Bounds, "max_level"),
        ge=1,
        le=100_000,
        description="highest level; never exceeded, whatever the search would like",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _refuse_disorder(self.min, self.max)
        return self


class BudgetSettings(Frozen):
    """Where a sweep stops, finished or not."""

    requests: int = Field(default=default_of(Bounds, "requests"), ge=1, description="requests, whatever the level")
    requests_per_level: int = Field(
        default=default_of(Bounds, "requests_per_level"),
        ge=0,
        description="further requests per unit of the highest level tried",
    )
    duration_s: DurationS = Field(default=default_of(Bounds, "duration_s"), alias="duration", description="wall time")
    overload_s: DurationS = Field(
        default=default_of(Bounds, "overload_s"),
        alias="overload",
        description="time with the objectives broken by our probes",
    )


class CapSettings(Frozen):
    """Range of what is published; the last word after margin and replicas."""

    min: int = Field(
        default=default_of(PublishPolicy, "min_cap"),
        ge=1,
        le=1_000_000,
        description="lowest cap; 0 would mean 'block all' to some gateways",
    )
    max: int = Field(default=default_of(PublishPolicy, "max_cap"), ge=1, le=1_000_000, description="highest cap")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _refuse_disorder(self.min, self.max)
        return self


class ClassSettings(Frozen):
    """One kind of probe request."""

    name: Text = Field(default=default_of(WorkloadClass, "name"), description="name in reports")
    share: float = Field(
        default=default_of(WorkloadClass, "share"),
        gt=0.0,
        description="weight in the mix, relative to the other classes",
    )
    prompt_tokens: int = Field(
        default=default_of(WorkloadClass, "prompt_tokens"), ge=1, le=10_000_000, description="prompt length in tokens"
    )
    output_tokens: int = Field(
        default=default_of(WorkloadClass, "output_tokens"), ge=1, le=10_000_000, description="answer length in tokens"
    )
    stream: bool = Field(
        default=default_of(WorkloadClass, "stream"), description="streamed; without, only e2e can be measured"
    )
    spread_ratio: float = Field(
        default=default_of(WorkloadClass, "spread_ratio"),
        ge=0.0,
        lt=1.0,
        description="lengths vary uniformly by this ratio, up and down",
    )
    prompt_sigma: float = Field(
        default=default_of(WorkloadClass, "prompt_sigma"),
        ge=0.0,
        le=3.0,
        description="above 0: prompt lengths are lognormal with this log-sd instead",
    )


class WorkloadSettings(Frozen):
    """The probe traffic; a cap holds for traffic like it."""

    classes: tuple[ClassSettings, ...] = Field(
        default=(ClassSettings(),), min_length=1, description="the mix of requests"
    )
    trace: File | None = Field(
        default=None,
        description="instead of classes: JSON Lines with prompt_tokens, output_tokens, stream, class of real requests, "
        "or Mooncake's fields",
    )
    mirror: MirrorSettings | None = Field(
        default=None,
        description="copy the lengths of live traffic from the engine's histograms; classes or trace stand in until "
        "enough was seen",
    )
    prefix_reuse: PrefixReuse = Field(
        default=default_of(Workload, "prefix_reuse_ratio"),
        description="share of the prompt tokens that the engine's prefix cache shall find, as in your users' traffic; "
        "mirror: as much as it found there; beside mirror: likewise, unless a ratio above 0 is given",
    )
    _recorded: tuple[WorkloadClass, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _reads_its_trace(self) -> Self:
        if self.trace is None:
            return self
        if self.classes != (ClassSettings(),):
            refuse(Problem("trace", "stands beside classes.", "Give one of the two."))
        try:
            self._recorded = read_trace(self.trace)
        except ConfigurationError as error:
            refuse(Problem("trace", error.cause, error.remedy))
        return self

    def value(self) -> Workload:
        classes = self._recorded or tuple(WorkloadClass(**dict(one)) for one in self.classes)
        return Workload(classes, 0.0 if self.prefix_reuse == "mirror" else self.prefix_reuse)

    def mirrored(self) -> MirrorPolicy | None:
        """What of it is copied from live traffic; None: nothing."""
        if self.mirror is not None:
            return self.mirror.value(prefix_reuse=not isinstance(self.prefix_reuse, float) or not self.prefix_reuse)
        return MirrorSettings().value(prefix_reuse=True, lengths=False) if self.prefix_reuse == "mirror" else None


class BackendSettings(Frozen):
    """One model behind one name."""

    url: ApiUrl = Field(description="base of the OpenAI-compatible API, usually ending in /v1; one engine, no balancer")
    model: Text = Field(description="model name sent with each request")
    objectives: tuple[ObjectiveText, ...] = Field(
        min_length=1, description="the SLA, for example ['ttft p99 <= 500ms']; all must hold"
    )
    fallback_cap: int = Field(
        ge=1, le=1_000_000, description="cap published until a sweep has measured one, and when none is safe"
    )
    replicas: ReplicasSettings = Field(default=ReplicasSettings(), description="engines behind this name, where many")
    engine_group: Name | None = Field(
        default=None,
        description="backends that share an engine, swept one at a time; at one address they share the first one's "
        "sweep, and its capacity by weight; default: own name",
    )
    api: Literal["chat", "completions"] = Field(
        default=default_of(Target, "api"), description="operation that the probes use"
    )
    api_key: Secret | None = Field(default=None, description="bearer token for the engine")
    ca_file: File | None = Field(default=None, description="certificate authorities for TLS; default: the system's")
    client_cert_file: File | None = Field(default=None, description="client certificate for mutual TLS")
    client_key_file: File | None = Field(
        default=None, description="its private key; default: in the certificate's file"
    )
    metrics_url: HttpUrl | None = Field(
        default=None, description="the engine's own metrics; default: /metrics next to the API"
    )
    every_s: DurationS = Field(
        default=default_of(Schedule, "every_s"), alias="every", description="time between sweeps"
    )
    jitter_ratio: float = Field(
        default=default_of(Schedule, "jitter_ratio"),
        ge=0.0,
        le=0.5,
        description="sweeps move by this share, so that fleets spread out",
    )
    windows: tuple[WindowSettings, ...] = Field(
        default=(), description="when sweeps run; one that still runs when its window closes ends there; none: always"
    )
    bounds: BoundsSettings = Field(default=BoundsSettings(), description="levels to search")
    budget: BudgetSettings = Field(default=BudgetSettings(), description="hard limits of one sweep")
    cap: CapSettings = Field(default=CapSettings(), description="range of the published cap")
    workload: WorkloadSettings = Field(default=WorkloadSettings(), description="what the probes look like")
    burst: Literal["off", "report", "enforce"] = Field(
        default=default_of(BackendPlan, "burst"),
        description="after a sweep: simultaneous arrivals at the capacity, shown beside the steady state; enforce: "
        "lower the capacity until they hold too",
    )
    mode: Literal["measure", "observe"] = Field(
        default="measure", description="observe: no probes at all; the log and the API tell when a sweep would have run"
    )
    publish: Literal["enforce", "shadow"] = Field(
        default="enforce", description="shadow: gateways get fallback_cap; API and metrics show what was measured"
    )
    limits: LimitsSettings = Field(default=LimitsSettings(), description="what live users may have to bear for a sweep")
    triggers: TriggerSettings = Field(
        default=TriggerSettings(), description="what asks for a sweep before the schedule does"
    )
    guard: GuardSettings = Field(default=GuardSettings(), description="what protects live users between sweeps")
    safety_margin_ratio: float = Field(
        default=default_of(PublishPolicy, "safety_margin_ratio"),
        ge=0.0,
        lt=1.0,
        description="taken off the capacity, because tomorrow's traffic is not today's",
    )
    max_increase_ratio: float = Field(
        default=default_of(PublishPolicy, "max_increase_ratio"),
        ge=1.0,
        le=100.0,
        description="one sweep raises a cap at most by this factor",
    )
    valid_for_s: DurationS | None = Field(
        default=None, alias="valid_for", description="age at which a recommendation counts as stale; default: 3 x every"
    )

    @model_validator(mode="before")
    @classmethod
    def _finds_its_url(cls, value: Any) -> Any:
        return with_url(value)

    @property
    def validity_s(self) -> float:
        return VALID_FOR_SWEEPS * self.every_s if self.valid_for_s is None else self.valid_for_s

    def sweep_bounds(self) -> Bounds:
        return Bounds(
            self.bounds.min,
            self.bounds.max,
            self.budget.requests,
            self.budget.requests_per_level,
            self.budget.duration_s,
            self.budget.overload_s,
        )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if problems := tuple(self._problems()):
            refuse(*problems)
        return self

    def _problems(self) -> Iterator[Problem]:
        workload = self.workload.value()
        blind = [one for one in self.objectives if judged_share(one, workload) == 0.0]
        if len(set(self.objectives)) < len(self.objectives):
            yield Problem("objectives", "names one objective twice.", "Name each once.")
        for one in blind:
            yield Problem(
                "objectives",
                f"no class of the workload says anything about '{one}'.",
                "Give a class that streams, or an e2e objective, and prompts within the objective's length.",
            )
        if not blind and (refusal := can_certify(self.sweep_bounds(), self.objectives, workload)):
            yield Problem("budget.requests", refusal, "")
        limits, cost = (
            self.limits.value(observe=False, shadow=False),
            sweep_cost(self.sweep_bounds(), self.objectives, workload),
        )
        for reason, words in too_small(limits, cost):
            yield Problem(f"limits.{reason}_per_day", f"{words}: none would start.", "Allow more, or lower the budget.")
        if not self.cap.min <= self.fallback_cap <= self.cap.max:
            yield Problem(
                "fallback_cap",
                f"{self.fallback_cap} lies outside cap {self.cap.min}..{self.cap.max}.",
                "Move one of them.",
            )
        if self.validity_s < self.every_s * (1.0 + self.jitter_ratio):
            yield Problem("valid_for", "ends before the next sweep is due.", "Give more than every plus its jitter.")
        if self.client_key_file is not None and self.client_cert_file is None:
            yield Problem("client_key_file", "has no certificate.", "Give client_cert_file too.")


class Settings(BaseSettings):
    """The whole configuration; made by `load_settings` only."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    listen: ListenSettings = Field(default=ListenSettings(), description="where the service answers")
    store: StoreSettings = Field(default=StoreSettings(), description="what survives a restart")
    auth: AuthSettings = Field(default=AuthSettings(), description="who may read and write")
    sweeps: SweepsSettings = Field(default=SweepsSettings(), description="limits over all backends")
    load: LoadSettings = Field(default=LoadSettings(), description="where the load of sweeps comes from")
    gateways: GatewaysSettings = Field(default=GatewaysSettings(), description="gateways with a protocol of their own")
    log: LogSettings = Field(default=LogSettings(), description="what is written to stderr")
    tracing: TracingSettings = Field(default=TracingSettings(), description="traces of sweeps for OpenTelemetry")
    backends: dict[Name, BackendSettings] = Field(
        min_length=1, description="what is measured, each under the name that gateways ask for"
    )

    @model_validator(mode="after")
    def _gateways_know_the_backends(self) -> Self:
        if problems := tuple(self.gateways.problems(self.backends)):
            refuse(*problems)
        return self

    @model_validator(mode="after")
    def _engines_are_swept_one_at_a_time(self) -> Self:
        """Two backends at one address are one engine; two sweeps at once would measure each other."""
        group_of: dict[str, tuple[str, str]] = {}
        problems = []
        for name, backend in self.backends.items():
            group = backend.engine_group or name
            places = {backend.url, *backend.replicas.urls, *backend.replicas.measure_on}
            for other, known in {group_of.setdefault(url, (name, group)) for url in places}:
                if group == known:
                    if backend.objectives != self.backends[other].objectives:
                        problems.append(
                            Problem(
                                f"backends.{name}.objectives",
                                f"'{name}' and '{other}' share the sweeps of one engine but not one SLA.",
                                "Give both the same objectives, the stricter ones.",
                            )
                        )
                    continue
                problems.append(
                    Problem(
                        f"backends.{name}.engine_group",
                        f"'{name}' and '{other}' have the same URL but are not in one engine group.",
                        "Give both the same engine_group.",
                    )
                )
        if problems:
            refuse(*problems)
        return self
