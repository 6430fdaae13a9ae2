"""The configuration file as a tree. A field's description states unit and reason; reference and messages quote it.

Attribute names carry units (`every_s`). Keys of the file do not, because their values do (`6h`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from calibrator.core.admission.admission import too_small
from calibrator.core.admission.schedule import Schedule
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.records.history import Bounds
from calibrator.core.search.cost import can_certify, judged_share, sweep_cost
from calibrator.ports.sweeps import BackendPlan, Target
from calibrator.settings.defaults import default_of
from calibrator.settings.problems import Problem, refuse
from calibrator.settings.sections.gateways import GatewaysSettings
from calibrator.settings.sections.guard import GuardSettings
from calibrator.settings.sections.limits import LimitsSettings
from calibrator.settings.sections.load_generator import LoadSettings
from calibrator.settings.sections.replicas import ReplicasSettings, with_url
from calibrator.settings.sections.store import StoreSettings
from calibrator.settings.sections.tls import Network, TlsSettings
from calibrator.settings.sections.tracing import TracingSettings
from calibrator.settings.sections.triggers import TriggerSettings
from calibrator.settings.sections.workload import WorkloadSettings
from calibrator.settings.values import (
    ApiUrl,
    DurationS,
    File,
    Frozen,
    HeaderName,
    HttpUrl,
    KeyPlace,
    MinuteOfDay,
    Name,
    ObjectiveText,
    Secret,
    Text,
    TimeZone,
)

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
VALID_FOR_SWEEPS = 3  # two sweeps in a row may fail before a recommendation becomes stale


def _refuse_disorder(low: int, high: int) -> None:
    if low > high:
        refuse(Problem("min", f"{low} is above max {high}.", "Give min <= max."))


class ListenSettings(Frozen):
    """Where the service listens."""

    host: Text = Field(
        default="127.0.0.1",
        description="address to bind; 0.0.0.0 listens on all interfaces and is therefore not the default",
    )
    port: int = Field(default=8300, ge=0, le=65535, description="TCP port; 0 chooses a free one")
    tls: TlsSettings | None = Field(default=None, description="HTTPS; default: plain HTTP")
    proxies: tuple[Network, ...] = Field(
        default=(),
        description="addresses or networks of reverse proxies whose X-Forwarded-For and -Proto are trusted",
    )


class AuthSettings(Frozen):
    """Bearer tokens. Without an operator token there are no write routes."""

    operator_tokens: tuple[Secret, ...] = Field(
        default=(), description="may start sweeps and pin caps; a list, so that tokens can be rotated"
    )
    read_tokens: tuple[Secret, ...] = Field(default=(), description="may read; none: anyone may read")


class SweepsSettings(Frozen):
    """Limits over all backends."""

    max_parallel: int = Field(
        default=1,
        ge=1,
        le=64,
        description="sweeps at a time, at most one per engine group; each is a process of its own",
    )


class LogSettings(Frozen):
    """Log output on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="lowest severity written")
    format: Literal["json", "console"] = Field(default="json", description="json for machines, console for people")


class WindowSettings(Frozen):
    """A weekly time window."""

    days: tuple[Day, ...] = Field(default=DAYS, min_length=1, description="days on which the window starts")
    from_minute: MinuteOfDay = Field(alias="from", description='start, local time, as "22:00"')
    to_minute: MinuteOfDay = Field(
        alias="to", description='end, as "06:00"; on the next day unless later than the start'
    )
    time_zone: TimeZone = Field(default="UTC", description="IANA time zone; daylight saving time applies")


class BoundsSettings(Frozen):
    """In-flight levels that a sweep may hold on one replica."""

    min: int = Field(
        default=default_of(Bounds, "min_level"), ge=1, le=100_000, description="lowest level, requests in flight"
    )
    max: int = Field(
        default=default_of(Bounds, "max_level"),
        ge=1,
        le=100_000,
        description="highest level; the search never exceeds it",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _refuse_disorder(self.min, self.max)
        return self


class BudgetSettings(Frozen):
    """When a sweep ends, finished or not."""

    requests: int = Field(
        default=default_of(Bounds, "requests"), ge=1, description="requests, independent of the level"
    )
    requests_per_level: int = Field(
        default=default_of(Bounds, "requests_per_level"),
        ge=0,
        description="additional requests per unit of the highest level tried",
    )
    duration_s: DurationS = Field(default=default_of(Bounds, "duration_s"), alias="duration", description="wall time")
    overload_s: DurationS = Field(
        default=default_of(Bounds, "overload_s"),
        alias="overload",
        description="time for which probes may push the backend over its objectives",
    )


class CapSettings(Frozen):
    """Range of the published cap, applied last, after margin and replicas."""

    min: int = Field(
        default=default_of(PublishPolicy, "min_cap"),
        ge=1,
        le=1_000_000,
        description="lowest cap; some gateways read 0 as 'block everything'",
    )
    max: int = Field(default=default_of(PublishPolicy, "max_cap"), ge=1, le=1_000_000, description="highest cap")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _refuse_disorder(self.min, self.max)
        return self


class BackendSettings(Frozen):
    """One model behind one name."""

    url: ApiUrl = Field(
        description="base of the OpenAI-compatible API, usually ending in /v1; an engine, not a load balancer; a "
        "query, such as ?api-version=..., is sent with each request"
    )
    model: Text = Field(description="model name sent with each request")
    objectives: tuple[ObjectiveText, ...] = Field(
        min_length=1, description="the SLA, for example ['ttft p99 <= 500ms']; all must hold"
    )
    fallback_cap: int = Field(
        ge=1, le=1_000_000, description="cap published until a sweep has measured one, and when no level meets the SLA"
    )
    replicas: ReplicasSettings = Field(
        default=ReplicasSettings(), description="engines behind this name, if there are several"
    )
    engine_group: Name | None = Field(
        default=None,
        description="backends that share an engine and are swept one at a time; those with the same URL share the "
        "sweep of the first, and its capacity by weight; default: own name",
    )
    api: Literal["chat", "completions"] = Field(
        default=default_of(Target, "api"), description="API operation that probes call"
    )
    api_key: Secret | None = Field(default=None, description="key for the engine")
    api_key_in: KeyPlace = Field(
        default=default_of(Target, "api_key_in"),
        description="where the key is sent: bearer (Authorization), header:NAME (api-key, x-api-key), or query:NAME",
    )
    headers: dict[HeaderName, Secret] = Field(
        default={}, description="additional headers of each request, such as OpenAI-Organization"
    )
    ca_file: File | None = Field(default=None, description="CA bundle for TLS; default: the system's")
    client_cert_file: File | None = Field(default=None, description="client certificate for mutual TLS")
    client_key_file: File | None = Field(default=None, description="its private key; default: in client_cert_file")
    metrics_url: HttpUrl | None = Field(
        default=None, description="URL of the engine's metrics; default: /metrics next to the API"
    )
    every_s: DurationS = Field(
        default=default_of(Schedule, "every_s"), alias="every", description="time between sweeps"
    )
    jitter_ratio: float = Field(
        default=default_of(Schedule, "jitter_ratio"),
        ge=0.0,
        le=0.5,
        description="random share by which the interval varies, so that the sweeps of a fleet spread out",
    )
    windows: tuple[WindowSettings, ...] = Field(
        default=(),
        description="when sweeps may run; a sweep still running when its window closes ends then; none: always",
    )
    bounds: BoundsSettings = Field(default=BoundsSettings(), description="levels to search")
    budget: BudgetSettings = Field(default=BudgetSettings(), description="hard limits of one sweep")
    cap: CapSettings = Field(default=CapSettings(), description="range of the published cap")
    workload: WorkloadSettings = Field(default=WorkloadSettings(), description="what the probes look like")
    burst: Literal["off", "report", "enforce"] = Field(
        default=default_of(BackendPlan, "burst"),
        description="after a sweep, test simultaneous arrivals at the capacity; report: show the result beside the "
        "steady state; enforce: lower the capacity until they meet the SLA too",
    )
    mode: Literal["measure", "observe"] = Field(
        default="measure", description="observe: send no probes; log and API show when a sweep would have run"
    )
    publish: Literal["enforce", "shadow"] = Field(
        default="enforce", description="shadow: gateways get fallback_cap; API and metrics show what was measured"
    )
    limits: LimitsSettings = Field(default=LimitsSettings(), description="limits that protect live users from sweeps")
    triggers: TriggerSettings = Field(default=TriggerSettings(), description="what requests a sweep ahead of schedule")
    guard: GuardSettings = Field(default=GuardSettings(), description="what protects live users between sweeps")
    safety_margin_ratio: float = Field(
        default=default_of(PublishPolicy, "safety_margin_ratio"),
        ge=0.0,
        lt=1.0,
        description="share subtracted from the capacity, because traffic changes",
    )
    max_increase_ratio: float = Field(
        default=default_of(PublishPolicy, "max_increase_ratio"),
        ge=1.0,
        le=100.0,
        description="largest factor by which one sweep raises a cap",
    )
    valid_for_s: DurationS | None = Field(
        default=None, alias="valid_for", description="age at which a recommendation becomes stale; default: 3 x every"
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
            yield Problem("objectives", "lists an objective twice.", "List each once.")
        for one in blind:
            yield Problem(
                "objectives",
                f"no class of the workload can be judged by '{one}'.",
                "Add a class that streams, or use an e2e objective, with prompts within the objective's length.",
            )
        if not blind and (refusal := can_certify(self.sweep_bounds(), self.objectives, workload)):
            yield Problem("budget.requests", refusal, "")
        limits, cost = (
            self.limits.value(observe=False, shadow=False),
            sweep_cost(self.sweep_bounds(), self.objectives, workload),
        )
        for reason, words in too_small(limits, cost):
            yield Problem(
                f"limits.{reason}_per_day", f"{words}: no sweep would start.", "Raise it, or lower the budget."
            )
        if not self.cap.min <= self.fallback_cap <= self.cap.max:
            yield Problem(
                "fallback_cap",
                f"{self.fallback_cap} is outside cap {self.cap.min}..{self.cap.max}.",
                "Change one of them.",
            )
        if self.validity_s < self.every_s * (1.0 + self.jitter_ratio):
            yield Problem(
                "valid_for", "ends before the next sweep is due.", "Make it longer than every plus its jitter."
            )
        sent = [name.lower() for name in self.headers]
        if self.api_key is not None:
            sent.append(self.api_key_in.replace("bearer", "header:authorization").removeprefix("header:").lower())
        if len(set(sent)) < len(sent):
            yield Problem("headers", "lists a header twice, or that of the API key.", "List each once.")
        if self.client_key_file is not None and self.client_cert_file is None:
            yield Problem("client_key_file", "needs a certificate.", "Give client_cert_file too.")


class Settings(BaseSettings):
    """The whole configuration; created by `load_settings` only."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    listen: ListenSettings = Field(default=ListenSettings(), description="where the service listens")
    store: StoreSettings = Field(default=StoreSettings(), description="what survives a restart")
    auth: AuthSettings = Field(default=AuthSettings(), description="who may read and write")
    sweeps: SweepsSettings = Field(default=SweepsSettings(), description="limits over all backends")
    load: LoadSettings = Field(default=LoadSettings(), description="where sweeps generate their load")
    gateways: GatewaysSettings = Field(default=GatewaysSettings(), description="gateways with a protocol of their own")
    log: LogSettings = Field(default=LogSettings(), description="log output on stderr")
    tracing: TracingSettings = Field(default=TracingSettings(), description="traces of sweeps for OpenTelemetry")
    backends: dict[Name, BackendSettings] = Field(
        min_length=1, description="what is measured, each under the name that gateways poll"
    )

    @model_validator(mode="after")
    def _gateways_know_the_backends(self) -> Self:
        if problems := tuple(self.gateways.problems(self.backends)):
            refuse(*problems)
        return self

    @model_validator(mode="after")
    def _engines_are_swept_one_at_a_time(self) -> Self:
        """Two backends at one URL are one engine; concurrent sweeps would measure each other."""
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
                                f"'{name}' and '{other}' share the sweeps of one engine but have different objectives.",
                                "Give both the stricter objectives.",
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
